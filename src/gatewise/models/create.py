"""Build a network with its gates, or a GaterNet, from a spec."""

from typing import Any

from torch import nn

from gatewise import errors
from gatewise.core.seeding import seeded
from gatewise.gaternet import GaterNet
from gatewise.gates.registry import gate_spec
from gatewise.gates.spec import ModelSpec
from gatewise.insertion.insert import insert_all, inserted_gates
from gatewise.models.build import build_backbone


def make_model(
    spec: str | ModelSpec,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with its gates.

    Args:
        spec: a name ("resnet20", or any model of timm, also "hf-hub:OWNER/NAME"), a string with options and gates
            ("resnet20:shortcut=padding+gct:mode=l1@before_conv") or with a gater
            ("resnet20+gaternet:sites=inner,budget=0.5"), MODULE:FUNCTION after `gatewise.models.import_network`, or a
            `ModelSpec`.
        num_classes: outputs of the classifier; None uses that of the spec, or the default of the network (10 for
            CIFAR networks, 1000 in timm).
        in_chans: channels of the image; None uses that of the spec, or 3.
        image_size: (height, width) for which a gater counts MACs; None uses the default size of the network.
        seed: seed of the initial weights; torch's global generator is not changed, and the weights of the backbone do
            not depend on the gates.
        **options: of the network; they override those of the spec. CIFAR ResNets: shortcut="projection" or "padding",
            width=32 for resnet18_cifar, parameters=400000 for names that end in _wider. timm models: all options of
            `timm.create_model`.

    Returns:
        The network, or a `GaterNet` if the spec has a gater.

    Raises:
        InvalidValueError: a name or option is unknown (the message suggests the nearest known one), num_classes or
            in_chans differ between spec and call, or the spec has more than one gater.

    >>> net = make_model("resnet20+gct", num_classes=10)
    >>> sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in make_model("resnet20").parameters())
    2025
    >>> make_model("resnet20+gaternet:sites=residual").gate_count
    336
    """
    spec = spec if isinstance(spec, ModelSpec) else ModelSpec.parse(spec)
    gaters = [choice for choice in spec.gates if choice.is_gater]
    if len(gaters) > 1:
        raise errors.InvalidValueError(f"expected at most one gater, got {len(gaters)} in {spec}. Give one.")
    backbone = build_backbone(spec, num_classes=num_classes, in_chans=in_chans, seed=seed, **options)
    with seeded(seed):
        return _with_gater(backbone, spec, image_size)


def with_gates(network: nn.Module, spec: ModelSpec, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Return a network with the gates of a spec; it is changed, unless it has them already.

    Args:
        network: the network. Gates of its class, or inserted ones of other kinds, are part of the plain network.
        spec: a specification with gates; its name and options are ignored.
        image_size: (height, width) for which a gater counts MACs.
    """
    if isinstance(network, GaterNet):
        return network
    choices = tuple(choice for choice in spec.gates if not choice.is_gater)
    present = inserted_gates(network)
    if not all(any(isinstance(gate, gate_spec(choice.name).gate) for gate in present) for choice in choices):
        insert_all(network, choices)
    return _with_gater(network, spec, image_size)


def _with_gater(backbone: nn.Module, spec: ModelSpec, image_size: tuple[int, int] | None) -> nn.Module:
    gater = next((choice for choice in spec.gates if choice.is_gater), None)
    return backbone if gater is None else GaterNet(backbone, image_size=image_size, **gater.options)
