"""Support for Torch-Pruning: prune the channels of gates together with those of their layers."""

from collections.abc import Sequence

from torch import nn

from gatewise.gates.registry import Gate
from gatewise.insertion.insert import gates_in


class GatePruner:
    """Pruner in the sense of Torch-Pruning for gates without child modules.

    It has the methods of `torch_pruning.BasePruningFunc` but does not derive from it, so that torch_pruning need not be
    installed.
    """

    def prune_out_channels(self, layer: Gate, idxs: Sequence[int]) -> Gate:
        """Remove these channels from the parameters of the gate, all of shape (1, C, ...), and from `channels`."""
        removed = set(idxs)
        kept = [channel for channel in range(layer.channels) if channel not in removed]
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(parameter.detach()[:, kept], parameter.requires_grad))
        layer.set_channels(len(kept))
        return layer

    prune_in_channels = prune_out_channels  # Torch-Pruning compares the two functions to detect that both are coupled

    def get_out_channels(self, layer: Gate) -> int:
        return layer.channels

    get_in_channels = get_out_channels

    def get_in_channel_groups(self, layer: Gate) -> int:  # noqa: ARG002
        return 1

    get_out_channel_groups = get_in_channel_groups


def gate_pruners(model: nn.Module) -> dict[type[Gate], GatePruner]:
    """Return the `customized_pruners` argument of Torch-Pruning for the gates of a network.

    Gates without child modules, such as gct and lrn, need a pruner. Torch-Pruning handles gates that consist of layers
    itself, or does not prune their channels. It does not detect a gate without child modules on the output of a
    convolution or norm, such as ge without parameters at the end of a branch; after pruning such a gate raises because
    of the number of channels, so insert it after pruning.

    >>> from gatewise.insertion.insert import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> [kind.__name__ for kind in gate_pruners(net)]
    ['GatedChannelTransform']
    """
    without_children = {type(gate) for gate in gates_in(model).values() if not any(True for _ in gate.children())}
    return {kind: GatePruner() for kind in without_children}
