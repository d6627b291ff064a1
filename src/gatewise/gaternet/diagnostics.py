"""Which gates depend on the image, and warnings about gates that do not, are dead or saturated or miss a budget."""

from torch import Tensor

from gatewise.gaternet.budget import MISSED, Budget, open_share
from gatewise.gaternet.network import GaterNet

NEARLY = 0.005  # a gate depends on the image if it is open for more than this share of images, and less than 1 - this
_DEFINITION = f"open for more than {NEARLY:.1%} and fewer than {1 - NEARLY:.1%} of the images"
_FEWEST = 1 / 3  # of the gates, that depend on the image after a training
_MAX_SATURATED = 0.99


def depend_on_image(opened: Tensor, images: int) -> Tensor:
    """Return whether each gate is open for more than 0.5 % and fewer than 99.5 % of the images: (gates,) -> (gates,).

    Args:
        opened: number of images with each gate open, (gates,).
        images: number of images.

    >>> import torch
    >>> depend_on_image(torch.tensor([0, 1, 2, 398, 399, 400]), 400).tolist()
    [False, False, False, False, False, False]
    >>> depend_on_image(torch.tensor([3, 397]), 400).tolist()
    [True, True]
    """
    share = opened.double() / max(1, images)
    return (share > NEARLY) & (share < 1 - NEARLY)


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
    dependent = int(depend_on_image(opened, images).sum())
    if net.routes is not None:
        return _of_routes(net, len(net.routes), dependent)
    lines: list[str] = []
    for site in net.sites:
        own = opened[site.first : site.first + site.gates]
        if site.gates > 1 and not own.any():
            lines.append(f"all {site.gates} gates of {site.name!r} are closed for every image: its output is zero")
    if not lines and not dependent:
        lines.append(f"no gate depends on the image: none is {_DEFINITION}")
    lines += _of_finished_budget(net, opened.double() / images, dependent)
    if before is not None and bool((opened == before).all()):
        lines.append("no gate has changed since the previous epoch: each is open for the same number of images")
    saturated = float(net.saturated)
    if saturated > _MAX_SATURATED:
        lines.append(f"{100 * saturated:.0f} % of the gate logits are saturated (zero gradient)")
    return lines


def _of_routes(net: GaterNet, routes: int, dependent: int) -> list[str]:
    """Return the problems of a network with routes; one with a single route is pruned on purpose."""
    if routes > 1 and not dependent:
        return [f"nearly all images take the same of {routes} routes"]
    return _mostly_pruned(net, dependent) if routes > 1 else []


def _mostly_pruned(net: GaterNet, dependent: int) -> list[str]:
    """Return a line if fewer than a third of the gates depend on the image."""
    if dependent >= _FEWEST * net.gate_count:
        return []
    few = f"only {dependent} of {net.gate_count} gates depend on the image ({_DEFINITION})"
    return [f"{few}: the network is mostly a pruned one"]


def _of_finished_budget(net: GaterNet, rates: Tensor, dependent: int) -> list[str]:
    """Return the problems that count once the budget has fallen to its target and the training has ended."""
    budget = net.price
    if not isinstance(budget, Budget) or not budget.finished:
        return []
    lines = _mostly_pruned(net, dependent) if dependent and budget.target < 1 else []
    reached = float(open_share(rates.unsqueeze(0), budget.share.to(rates)))
    if abs(reached - budget.target) > MISSED:
        lines.append(f"the open fraction is {reached:.3f}, the budget {budget.target:g}: train longer")
    return lines
