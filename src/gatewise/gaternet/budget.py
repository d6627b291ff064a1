"""The price of open gates: what training adds to its loss, and the controller that makes a budget be met."""

import torch
from torch import Tensor, distributed, nn

from gatewise.gaternet.hooks import recomputing

_FRESH = [0.0, 0.0, 1.0]  # steps taken, the integral's price, mean open fraction


def open_share(gates: Tensor, share: Tensor) -> Tensor:
    """Return sum g s over gates, (N, c), (c,) -> (N,); no matrix product, which autocast would compute in bf16."""
    return (gates.to(share.dtype) * share).sum(1)


def _over_processes(mean: Tensor) -> Tensor:
    """Return the mean of what all processes of a distributed training have, each with as many images."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        return mean / distributed.get_world_size()
    return mean


class Sparsity(nn.Module):
    """The paper's term: `weight` times the mean gate, each gate counted by `share` (equal, or its multiply-adds)."""

    share: Tensor

    def __init__(self, share: Tensor, weight: float) -> None:
        super().__init__()
        self.register_buffer("share", share, persistent=False)
        self.weight = weight

    def forward(self, gates: Tensor, hard: Tensor) -> Tensor:  # noqa: ARG002
        return self.weight * open_share(gates, self.share).mean()

    def of_some(self, chosen: list[int], always_open: list[int]) -> "Sparsity":  # noqa: ARG002
        """Return the same price for some of the gates, the others being constant."""
        share = self.share[chosen]
        return Sparsity(share / share.sum(), self.weight * float(share.sum()))


class Budget(nn.Module):
    """A price on the open fraction that rises while more than the target is open and falls while less is.

    The open fraction is sum g m / sum m, with m each gate's own multiply-adds (`share` is m / sum m). The price is a
    proportional-integral controller of the error e = (open fraction of the hard gates, averaged) - (target now):
    p e + sum i e, times the fraction of the gates at hand. It may become negative: then open gates are rewarded, so
    that the budget is used up as well as kept. The target falls in a line from 1 to `target` over the first half of
    the training, whose length `schedule` tells; without that it takes 1,000 steps. In a distributed training the open
    fraction is that of all processes' images.

    Its state is in a buffer, so that an interrupted training goes on with the same price.
    """

    share: Tensor
    state: Tensor

    def __init__(self, share: Tensor, target: float, *, proportional: float = 20.0, integral: float = 0.05) -> None:
        super().__init__()
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("state", torch.tensor(_FRESH))
        self.target, self.proportional, self.integral = target, proportional, integral
        self.ramp = 1000
        self._before = self.state.clone()  # what the last forward began with, if it is computed again

    def of_some(self, chosen: list[int], always_open: list[int]) -> "Budget":
        """Return the same budget for some of the gates, of which those always open use up a part."""
        share = self.share[chosen]
        left = (self.target - float(self.share[always_open].sum())) / float(share.sum())
        price = Budget(
            share / share.sum(), min(1.0, max(1e-6, left)), proportional=self.proportional, integral=self.integral
        )
        price.ramp = self.ramp
        return price.to(share.device)

    def schedule(self, steps: int) -> None:
        """Begin anew, for so many training steps."""
        self.ramp = max(1, steps // 2)
        self.state.copy_(torch.tensor(_FRESH))

    def forward(self, gates: Tensor, hard: Tensor) -> Tensor:
        """Return the price to pay for `gates` (N, c), and move it by what the noiseless gates `hard` say."""
        again = recomputing()
        step, price, mean_open = (self._before if again else self.state).unbind()
        target = 1 - (1 - self.target) * (step / self.ramp).clamp(max=1)
        mean_open = mean_open.lerp(_over_processes(open_share(hard, self.share).mean()), 0.1)
        error = mean_open - target
        price = price + self.integral * error
        if not again:
            self._before = self.state.clone()
            with torch.no_grad():
                self.state.copy_(torch.stack([step + 1, price, mean_open]))
        return (price + self.proportional * error).detach() * open_share(gates, self.share).mean()
