"""Segmentation as GCNet does it: a dilated backbone, a block of global context, a head that labels every pixel."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import _validation, errors
from gatewise.functional import at_least_float32
from gatewise.insertion import insert_gates
from gatewise.places import ContextPlace, evaluation_mode
from gatewise.spec import GateChoice, parse_gates

STRIDES = (8, 16, 32)
_PLACES = {"last": "context", "stages": "context_stages"}
_WHOLE = ("u2net", "u2net_small", "u2net_gct", "u2net_small_gct")  # that label pixels without a backbone
MIN_PARALLEL_NUMEL = 4  # maps: c2 to c5
_SIDE = 97  # of the image that a backbone is tried with: no multiple of any stride, as users' images are


class Segmenter(nn.Module):
    """Backbone, place of context, head: (N, in_chans, H, W) -> logits (N, num_classes, H, W), for any H and W.

    The head is a 3x3 convolution, BatchNorm, ReLU, dropout and a 1x1 classifier; its map is scaled up to the input
    bilinearly. With an auxiliary head, training mode returns (logits, auxiliary logits), and the auxiliary loss weighs
    0.4; eval mode returns the logits alone.

    Args:
        backbone: name of a timm network that can return its features.
        num_classes: maps; 1 for foreground against background.
        in_chans: channels of the image.
        output_stride: 8 or 16: the last stages are dilated instead of strided; 32: as the backbone is.
        channels: of the head.
        dropout: before the classifier.
        auxiliary: whether a second head learns from the last stage but one.
        pretrained: whether timm loads the backbone's weights.

    Refused with ValueError: a backbone that timm cannot dilate to that stride or whose features it cannot return.
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
        """Return the logits; in training mode those of the auxiliary head behind them, if there is one."""
        *_, middle, last = self.backbone(x)
        logits = _resized(self.head(self.context(last)), x)
        if self.training and self.auxiliary is not None:
            return logits, _resized(self.auxiliary(middle), x)
        return logits

    @property
    def pretrained_cfg(self) -> Any:
        """What timm tells of the backbone's weights, such as the mean and deviation of their images."""
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
    """Build GCNet for segmentation: a dilated backbone, a block of context, a head (Cao et al., ICCVW 2019).

    Args:
        backbone: name of a timm network that can return its features.
        num_classes: maps; 1 for foreground against background.
        context: a gate with its options ("gc:rd_ratio=1/4", "nl", "snl", "se"), or "none" (None too).
        context_at: "last" behind the last stage (the place `context`), or "stages" at the end of each residual branch
            of the stages c3 to c5, as in the paper (the place `context_stages`).
        seed: makes the weights reproducible without touching torch's global generator; those of backbone and head do
            not depend on the context.
        **options: of `Segmenter`: output_stride=16, in_chans=3, channels=128, dropout=0.1, auxiliary=False,
            pretrained=False.

    Refused with ValueError: what `Segmenter` refuses; a gate that is not known, or that names a place; "stages" in a
    backbone without residual branches.

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
        raise errors.InvalidValueError(f"context takes a gate without a place, got {context!r}. Give context_at.")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        model = Segmenter(backbone=backbone, num_classes=num_classes, **options)
        for gate in gates:
            insert_gates(model, gate, place=place)
    return model


def _features(name: str, output_stride: int, *, in_chans: int, pretrained: bool) -> Any:
    """Return a timm network that gives its stages' maps, the last of them at `output_stride`."""
    timm = _validation.import_optional("timm", f"the backbone {name!r}")
    base, known = name.partition(".")[0], timm.list_models()
    if "/" not in name and ":" not in name and base not in known:
        raise errors.InvalidValueError(
            f"unknown backbone {base!r}; expected a name from timm.list_models(), or for a whole network "
            f"{', '.join(_WHOLE)}.{_validation.did_you_mean(base, [*_WHOLE, *known])}"
        )
    stride = {} if output_stride == max(STRIDES) else {"output_stride": output_stride}
    options = {"features_only": True, "in_chans": in_chans, "pretrained": pretrained}
    try:
        backbone = timm.create_model(name, **options, **stride)
        image = torch.zeros(1, in_chans, _SIDE, _SIDE)
        with evaluation_mode(backbone), torch.no_grad():
            features = backbone(image)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise errors.InvalidValueError(f"the weights of {name!r} cannot be loaded ({reason}).") from None
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise errors.InvalidValueError(
            f"timm cannot build {name!r} as a backbone with features_only and an output stride of {output_stride} "
            f"({reason}). Take another, for example resnet18"
            f"{'' if output_stride == max(STRIDES) else f', or output_stride={max(STRIDES)}'}."
        ) from None
    expected = {_SIDE // output_stride, -(-_SIDE // output_stride)}
    if not set(features[-1].shape[2:]) <= expected or len(features) < MIN_PARALLEL_NUMEL:
        raise errors.InvalidValueError(
            f"{name!r} gives {len(features)} maps, the last {tuple(features[-1].shape[2:])} of an image of {_SIDE}x"
            f"{_SIDE}; expected at least {MIN_PARALLEL_NUMEL}, the last with a side of {max(expected)}. "
            f"Take another backbone or stride."
        )
    return backbone


def _late_layers(backbone: Any, image: Tensor) -> tuple[str, ...]:
    """Return the paths of the layers that run behind stage c2, the last but three of the backbone's maps."""
    ended: list[tuple[str, Any]] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output, path=path: ended.append((path, output)))
        for path, layer in backbone.named_modules()
        if path
    ]
    try:
        with evaluation_mode(backbone), torch.no_grad():
            features = backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    end_of_c2 = [number for number, (_, output) in enumerate(ended) if output is features[-MIN_PARALLEL_NUMEL]]
    return tuple(dict.fromkeys(path for path, _ in ended[end_of_c2[-1] + 1 :])) if end_of_c2 else ()


def _head(inputs: int, channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, num_classes, 1),
    )


def _resized(x: Tensor, image: Tensor) -> Tensor:
    """Scale logits to an image, in float32 at least: under autocast ties of rounded values would be many."""
    return nn.functional.interpolate(
        x.to(at_least_float32(x.dtype)), image.shape[2:], mode="bilinear", align_corners=False
    )
