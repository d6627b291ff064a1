"""Gates that have died, saturated or stopped moving, in words for whoever trains them."""

from torch import Tensor

from gatewise.gaternet.network import GaterNet

_MOST = 0.99


def gate_warnings(net: GaterNet, opened: Tensor, images: int, before: Tensor | None = None) -> list[str]:
    """Return one line for each thing that is wrong with the gates, or nothing.

    Args:
        net: whose last training forward tells how many logits are saturated.
        opened: how many of the images opened each gate, (gate_count,).
        images: how many there were.
        before: the same counts an epoch ago, if there was one.

    >>> import torch
    >>> net = GaterNet(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Conv2d(2, 2, 3)), image_size=(8, 8))
    >>> gate_warnings(net, torch.tensor([0, 0]), images=10)
    ["all 2 gates of '0' are closed for every image: its filters give nothing"]
    >>> gate_warnings(net, torch.tensor([5, 0]), images=10)
    []
    """
    lines: list[str] = []
    for site in net.sites:
        own = opened[site.first : site.first + site.gates]
        if site.gates > 1 and not own.any():
            lines.append(
                f"all {site.gates} gates of {site.name!r} are closed for every image: its filters give nothing"
            )
    if not lines and bool(((opened == 0) | (opened == images)).all()):
        lines.append("no gate depends on the image any more: each is open for all images or for none")
    if before is not None and bool((opened == before).all()):
        lines.append("no gate has changed its decision for any image since the epoch before")
    saturated = float(net.saturated)
    if saturated > _MOST:
        lines.append(f"{100 * saturated:.0f} % of the gates' logits are so large that they learn no more")
    return lines
