"""Loss terms for open gates: a fixed price (`Sparsity`), or a controlled one that meets a target (`Budget`)."""

import torch
from torch import Tensor, distributed

from gatewise.core._torch_compat import Float32Buffers
from gatewise.gaternet.hooks import recomputing

_NEAR = 0.1  # largest error that is summed: summing the delay to a falling target would close too many gates
_INITIAL_STATE = [0.0, 0.0, 1.0]  # number of steps, integral part of the price, mean open fraction


MISSED = 0.02  # difference of open fraction and target from which a budget is missed


def describe_open_fraction(open_fraction: float, target: float | None) -> str:
    """Return an open fraction as text, and the target if it was missed by more than 0.02.

    >>> describe_open_fraction(0.51, 0.5), describe_open_fraction(0.72, 0.5)
    ('0.510', '0.720 (budget 0.5 missed)')
    """
    missed = target is not None and abs(open_fraction - target) > MISSED
    return f"{open_fraction:.3f}" + (f" (budget {target:g} missed)" if missed else "")


def open_share(gates: Tensor, share: Tensor) -> Tensor:
    """Return sum(g s) over gates: (N, c), (c,) -> (N,). Not as a matmul: autocast would run that in bf16."""
    return (gates.to(share.dtype) * share.to(gates.device)).sum(1)


def _over_processes(mean: Tensor) -> Tensor:
    """Return the mean over all processes of a distributed training, which have equal numbers of images."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        return mean / distributed.get_world_size()
    return mean


class Sparsity(Float32Buffers):
    """The paper's loss term: `weight` times the mean gate, weighted by `share` (equal, or by multiply-adds)."""

    constants = ("share",)

    def __init__(self, share: Tensor, weight: float) -> None:
        super().__init__()
        self.share = share
        self.weight = weight

    def forward(self, gates: Tensor, hard: Tensor) -> Tensor:  # noqa: ARG002
        return self.weight * open_share(gates, self.share).mean()

    def of_some(self, chosen: list[int], always_open: list[int]) -> "Sparsity":  # noqa: ARG002
        """Return the same price for the gates `chosen`; the others are constant."""
        share = self.share[chosen]
        return Sparsity(share / share.sum(), self.weight * float(share.sum()))


class Budget(Float32Buffers):
    """A price of open gates that a controller adjusts until the open fraction equals the target.

    The open fraction is sum(g m) / sum(m), with m the multiply-adds of each gate's filters (`share` is m / sum(m)). The
    loss is (p e + sum(i e)) times the open fraction of `gates`: a proportional-integral controller of the error
    e = (running mean of the open fraction of the hard gates) - (current target). The sum has the errors below 0.1 only,
    so that a short training, whose gates follow the target with a delay, does not fall far below it. A negative price
    rewards open gates, so the target is met from both sides. The target decreases linearly from 1 to `target` over the
    first half of the training (`schedule` sets its steps; 1,000 steps without it). In a distributed training the open
    fraction is the mean over all processes.

    The state is a buffer, so that a resumed training continues with the same price; it stays in float32, since in
    bfloat16 the number of steps would not exceed 256.
    """

    constants = ("share",)
    state: Tensor

    def __init__(self, share: Tensor, target: float, *, proportional: float = 20.0, integral: float = 0.05) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("state", torch.tensor(_INITIAL_STATE))
        self.target, self.proportional, self.integral = target, proportional, integral
        self.ramp = 1000
        self._before = self.state.clone()  # state before the last forward, in case it is recomputed

    def of_some(self, chosen: list[int], always_open: list[int]) -> "Budget":
        """Return the same budget for the gates `chosen`, reduced by the share of the gates that are always open."""
        share = self.share[chosen]
        left = (self.target - float(self.share[always_open].sum())) / float(share.sum())
        price = Budget(
            share / share.sum(), min(1.0, max(1e-6, left)), proportional=self.proportional, integral=self.integral
        )
        price.ramp = self.ramp
        return price.to(self.state.device)

    def schedule(self, steps: int) -> None:
        """Reset the state for a training of `steps` steps."""
        self.ramp = max(1, steps // 2)
        self.state.copy_(torch.tensor(_INITIAL_STATE))

    @property
    def finished(self) -> bool:
        """Whether all steps of the schedule have run."""
        return float(self.state[0]) >= 2 * self.ramp

    def forward(self, gates: Tensor, hard: Tensor) -> Tensor:
        """Return the loss term of `gates` (N, c), and update the price from the deterministic gates `hard` (N, c)."""
        again = recomputing()
        step, price, mean_open = (self._before if again else self.state).unbind()
        target = 1 - (1 - self.target) * (step / self.ramp).clamp(max=1)
        mean_open = mean_open.lerp(_over_processes(open_share(hard, self.share).mean()), 0.1)
        error = mean_open - target
        price = torch.where(error.abs() < _NEAR, price + self.integral * error, price)
        if not again:
            self._before = self.state.clone()
            with torch.no_grad():
                self.state.copy_(torch.stack([step + 1, price, mean_open]))
        return (price + self.proportional * error).detach() * open_share(gates, self.share).mean()
