"""Let Torch-Pruning cut gates together with the channels that they are on."""

from collections.abc import Sequence

from torch import nn

from gatewise.insertion import gates_in
from gatewise.registry import Gate


class GatePruner:
    """What Torch-Pruning asks of a pruner for a kind of layer, for gates that hold no layers themselves.

    It has the methods of `torch_pruning.BasePruningFunc`, so that the package need not be there.
    """

    def prune_out_channels(self, layer: Gate, idxs: Sequence[int]) -> Gate:
        """Take these channels from the gate's parameters, all of the form (1, C, ...), and from what it expects."""
        gone = set(idxs)
        kept = [channel for channel in range(layer.channels) if channel not in gone]
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(parameter.detach()[:, kept], parameter.requires_grad))
        layer._channels = len(kept)
        return layer

    prune_in_channels = prune_out_channels  # the very same, by which Torch-Pruning knows that both go together

    def get_out_channels(self, layer: Gate) -> int:
        return layer.channels

    get_in_channels = get_out_channels

    def get_in_channel_groups(self, layer: Gate) -> int:  # noqa: ARG002
        return 1

    get_out_channel_groups = get_in_channel_groups


def gate_pruners(model: nn.Module) -> dict[type[Gate], GatePruner]:
    """Return what Torch-Pruning takes as `customized_pruners`, for gates that it would not follow by itself.

    Those are gates without layers of their own, such as gct and lrn. Gates made of layers are followed anyway, or their
    channels are left alone. A gate without layers on the output of a convolution or norm, such as ge without weights at
    the end of a branch, is not followed, and refuses its map afterwards: prune before it is inserted.

    >>> from gatewise.insertion import insert_gates
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> _ = insert_gates(net, "gct")
    >>> [kind.__name__ for kind in gate_pruners(net)]
    ['GatedChannelTransform']
    """
    alone = {type(gate) for gate in gates_in(model).values() if not any(True for _ in gate.children())}
    return {kind: GatePruner() for kind in alone}
