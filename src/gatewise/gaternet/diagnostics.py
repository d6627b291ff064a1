"""Warnings about gates that are dead, saturated or no longer change."""

from torch import Tensor

from gatewise.gaternet.network import GaterNet

_MAX_SATURATED = 0.99


def gate_warnings(net: GaterNet, opened: Tensor, images: int, before: Tensor | None = None) -> list[str]:
    """Return one line for each problem of the gates; an empty list if there is none.

    Args:
        net: the network; its last training forward has set the fraction of saturated logits.
        opened: number of images with each gate open, (gate_count,).
        images: number of images.
        before: `opened` of the previous epoch, or None.

    >>> import torch
    >>> net = GaterNet(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Conv2d(2, 2, 3)), image_size=(8, 8))
    >>> gate_warnings(net, torch.tensor([0, 0]), images=10)
    ["all 2 gates of '0' are closed for every image: its output is zero"]
    >>> gate_warnings(net, torch.tensor([5, 0]), images=10)
    []
    """
    lines: list[str] = []
    for site in net.sites:
        own = opened[site.first : site.first + site.gates]
        if site.gates > 1 and not own.any():
            lines.append(f"all {site.gates} gates of {site.name!r} are closed for every image: its output is zero")
    if not lines and bool(((opened == 0) | (opened == images)).all()):
        lines.append("no gate depends on the image: each is open for all images or for none")
    if before is not None and bool((opened == before).all()):
        lines.append("no gate has changed since the previous epoch: each is open for the same number of images")
    saturated = float(net.saturated)
    if saturated > _MAX_SATURATED:
        lines.append(f"{100 * saturated:.0f} % of the gate logits are saturated (zero gradient)")
    return lines
