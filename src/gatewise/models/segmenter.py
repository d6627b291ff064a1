"""Segmentation network as in GCNet: a dilated backbone, a global context block and a segmentation head."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import reason_of
from gatewise.core.seeding import seeded
from gatewise.gates.functional import at_least_float32
from gatewise.gates.spec import GateChoice, parse_gates
from gatewise.graph import ContextPlace, evaluation_mode
from gatewise.insertion.insert import insert_gates
from gatewise.models.downloads import downloading

STRIDES = (8, 16, 32)
_PLACES = {"last": "context", "stages": "context_stages"}
_WITHOUT_BACKBONE = ("u2net", "u2net_small", "u2net_gct", "u2net_small_gct")
_MIN_FEATURES = 4  # feature maps of the backbone, c2 to c5
_SIDE = 97  # of the image for probing a backbone: not a multiple of any stride, like images of users


class Segmenter(nn.Module):
    """Segmentation network of a timm backbone, a context module and a head.

    Maps images (N, in_chans, H, W) to logits (N, num_classes, H, W), for any H and W.

    The head is a 3x3 convolution, BatchNorm, ReLU, dropout and a 1x1 convolution; its output is upsampled to the size
    of the input bilinearly. With an auxiliary head, training mode returns (logits, auxiliary logits), and the auxiliary
    loss has a weight of 0.4; eval mode returns only the logits.

    Args:
        backbone: name of a timm network that supports features_only.
        num_classes: number of output maps; 1 for a binary segmenter.
        in_chans: channels of the image.
        output_stride: 8 or 16, with dilation instead of stride in the last stages; 32 does not change the backbone.
        channels: width of the head.
        dropout: dropout rate before the last convolution.
        auxiliary: add a second head on the last stage but one, for training.
        pretrained: load timm's weights of the backbone.

    Raises:
        InvalidValueError: timm cannot dilate the backbone to that stride, or cannot return its features.
    """

    side_weight = 0.4  # of the auxiliary output in the loss

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        num_classes: int = 2,
        in_chans: int = 3,
        output_stride: int = 16,
        channels: int = 128,
        dropout: float = 0.1,
        auxiliary: bool = False,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, str):
            raise errors.InvalidTypeError(
                f"backbone must be the name of a timm network, got {_validation.safe_repr(backbone)}."
            )
        _validation.check_integer_at_least(1, num_classes=num_classes, in_chans=in_chans, channels=channels)
        _validation.check_integer_at_least(1, output_stride=output_stride)
        _validation.check_one_of("output_stride", output_stride, STRIDES)
        _validation.check_number_between(0, 0.99, dropout=dropout)
        _validation.check_bool(auxiliary=auxiliary, pretrained=pretrained)
        self.in_chans = in_chans
        self.backbone = _features(backbone, output_stride, in_chans=in_chans, pretrained=pretrained)
        widths = self.backbone.feature_info.channels()
        late = _late_layers(self.backbone, torch.zeros(1, in_chans, _SIDE, _SIDE))
        self.context = ContextPlace(widths[-1], tuple(f"backbone.{path}" for path in late))
        self.head = _head(widths[-1], channels, num_classes, dropout)
        self.auxiliary = _head(widths[-2], channels, num_classes, dropout) if auxiliary else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits; in training mode with an auxiliary head (logits, auxiliary logits)."""
        *_, middle, last = self.backbone(x)
        logits = _resized(self.head(self.context(last)), x)
        if self.training and self.auxiliary is not None:
            return logits, _resized(self.auxiliary(middle), x)
        return logits

    @property
    def pretrained_cfg(self) -> Any:
        """Config of the backbone's weights in timm, with the mean and standard deviation of their images."""
        return self.backbone.pretrained_cfg


def make_segmenter(
    backbone: str,
    *,
    num_classes: int,
    context: str | GateChoice | None = "gc",
    context_at: str = "last",
    seed: int | None = None,
    **options: Any,
) -> Segmenter:
    """Build GCNet for segmentation: a dilated backbone, a context block and a head (Cao et al., ICCVW 2019).

    Args:
        backbone: name of a timm network that supports features_only.
        num_classes: number of output maps; 1 for a binary segmenter.
        context: a gate with its options ("gc:rd_ratio=1/4", "nl", "snl", "se"), or "none" or None for no gate.
        context_at: "last" for one gate after the last stage (the place `context`), or "stages" for one at the end of
            each residual branch of the stages c3 to c5, as in the paper (the place `context_stages`).
        seed: seed of the initial weights; torch's global generator is not changed, and the weights of backbone and head
            do not depend on the context.
        **options: of `Segmenter`: output_stride=16, in_chans=3, channels=128, dropout=0.1, auxiliary=False,
            pretrained=False.

    Returns:
        The segmenter, with its gates inserted.

    Raises:
        InvalidValueError: the gate is unknown or has a place, context_at is "stages" and the backbone has no residual
            branches, or `Segmenter` rejects the backbone.

    >>> net = make_segmenter("resnet18", num_classes=11, context="gc", output_stride=8).eval()
    >>> net(torch.zeros(1, 3, 60, 80)).shape
    torch.Size([1, 11, 60, 80])
    """
    place = _PLACES[_validation.check_one_of("context_at", context_at, _PLACES)]
    _validation.check_known_options("make_segmenter", options, inspect.signature(Segmenter).parameters)
    context = "none" if context is None else context
    if not isinstance(context, str | GateChoice):
        raise errors.InvalidTypeError(
            f"context must be the name of a gate or a GateChoice, got {_validation.safe_repr(context)}."
        )
    gates = parse_gates(context) if isinstance(context, str) else (context,)
    if any(gate.is_gater or gate.place for gate in gates):
        raise errors.InvalidValueError(f"context must be a gate without a place, got {context!r}. Use context_at.")
    with seeded(seed):
        model = Segmenter(backbone=backbone, num_classes=num_classes, **options)
        for gate in gates:
            insert_gates(model, gate, place=place)
    return model


def _features(name: str, output_stride: int, *, in_chans: int, pretrained: bool) -> Any:
    """Return a timm network with features_only, whose last feature map has stride `output_stride`."""
    timm = _validation.import_optional("timm", f"the backbone {name!r}")
    base, known = name.partition(".")[0], timm.list_models()
    if "/" not in name and ":" not in name and base not in known:
        raise errors.InvalidValueError(
            f"unknown backbone {base!r}. Choose a name from timm.list_models(), or one of these "
            f"networks, which have no backbone: {', '.join(_WITHOUT_BACKBONE)}."
            f"{_validation.did_you_mean(base, [*_WITHOUT_BACKBONE, *known])}"
        )
    stride = {} if output_stride == max(STRIDES) else {"output_stride": output_stride}
    options = {"features_only": True, "in_chans": in_chans, "pretrained": pretrained}
    try:
        with downloading(name, pretrained=pretrained):
            backbone = timm.create_model(name, **options, **stride)
        image = torch.zeros(1, in_chans, _SIDE, _SIDE)
        with evaluation_mode(backbone), torch.no_grad():
            features = backbone(image)
    except errors.DataError:
        raise
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise errors.InvalidValueError(
            f"timm cannot build {name!r} as a backbone with features_only and an output stride of {output_stride} "
            f"({reason_of(error)}). Choose another backbone, for example resnet18"
            f"{'' if output_stride == max(STRIDES) else f', or output_stride={max(STRIDES)}'}."
        ) from None
    expected = {_SIDE // output_stride, -(-_SIDE // output_stride)}
    if not set(features[-1].shape[2:]) <= expected or len(features) < _MIN_FEATURES:
        raise errors.InvalidValueError(
            f"{name!r} returns {len(features)} feature maps, the last of size {tuple(features[-1].shape[2:])} for an "
            f"image of {_SIDE}x{_SIDE}; expected at least {_MIN_FEATURES} maps, the last with sides of "
            f"{max(expected)}. Choose another backbone or stride."
        )
    return backbone


def _late_layers(backbone: Any, image: Tensor) -> tuple[str, ...]:
    """Return the paths of the layers that run after stage c2, whose output is the fourth last feature map."""
    calls: list[tuple[str, Any]] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output, path=path: calls.append((path, output)))
        for path, layer in backbone.named_modules()
        if path
    ]
    try:
        with evaluation_mode(backbone), torch.no_grad():
            features = backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    end_of_c2 = [number for number, (_, output) in enumerate(calls) if output is features[-_MIN_FEATURES]]
    return tuple(dict.fromkeys(path for path, _ in calls[end_of_c2[-1] + 1 :])) if end_of_c2 else ()


def _head(inputs: int, channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, num_classes, 1),
    )


def _resized(x: Tensor, image: Tensor) -> Tensor:
    """Resize logits to the size of `image`, in float32 at least: half-precision rounding would cause many ties."""
    return nn.functional.interpolate(
        x.to(at_least_float32(x.dtype)), image.shape[2:], mode="bilinear", align_corners=False
    )
