"""Learning from a teacher: another trained network, or the same network with all gates open."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.types import main_output
from gatewise.gaternet.network import CompanionOutputs, GaterNet
from gatewise.gates.functional import at_least_float32
from gatewise.graph import evaluation_mode

SELF = "self"  # the teacher is the network itself with all gates open
Divergence = Callable[[Tensor, Tensor, float], Tensor]  # outputs of network and teacher, temperature -> (N,)


def class_divergence(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(t / T) || softmax(o / T)) for each image: (N, classes, ...), the same -> (N,).

    The mean is taken over positions, if there are any.
    """
    _check_alike(output, teacher)
    dtype = at_least_float32(output.dtype)
    own, goal = ((each.to(dtype) / temperature).log_softmax(1) for each in (output, teacher))
    return temperature**2 * (goal.exp() * (goal - own)).sum(1).reshape(len(output), -1).mean(1)


def label_divergence(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL of Bernoulli distributions with logits t / T and o / T, the mean over labels: (N, ...) -> (N,)."""
    _check_alike(output, teacher)
    dtype = at_least_float32(output.dtype)
    own, goal = (each.to(dtype) / temperature for each in (output, teacher))
    cross, entropy = (
        nn.functional.binary_cross_entropy_with_logits(each, goal.sigmoid(), reduction="none") for each in (own, goal)
    )
    return temperature**2 * (cross - entropy).reshape(len(output), -1).mean(1)


def squared_distance(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:  # noqa: ARG001
    """Return the mean squared difference of each image's numbers, without temperature: (N, ...), the same -> (N,)."""
    _check_alike(output, teacher)
    difference = (output - teacher).to(at_least_float32(output.dtype))
    return difference.square().reshape(len(output), -1).mean(1)


def _check_alike(output: Tensor, teacher: Tensor) -> None:
    if output.shape != teacher.shape:
        raise errors.InvalidValueError(
            f"the teacher returns shape {tuple(teacher.shape)}, the network {tuple(output.shape)}. Choose a teacher "
            f"that was trained for the same outputs."
        )


def distillation_loss(output: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Return the mean over images (and positions) of T^2 KL(softmax(t / T) || softmax(o / T)), a scalar.

    Args:
        output: logits o of the network that learns, (N, classes, ...).
        teacher: logits t of the teacher, of the same shape; they get no gradient.
        temperature: T; the factor T^2 keeps the size of the gradients.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> distillation_loss(logits, logits).item(), round(distillation_loss(logits, -logits, temperature=1.0).item(), 3)
    (0.0, 1.523)
    """
    _validation.check_floating_point("distillation_loss", output=output, teacher=teacher)
    _validation.check_number_between(1e-3, 1e3, temperature=temperature)
    return class_divergence(output, teacher.detach(), temperature).mean()


class TeacherLoss(nn.Module):
    """Return criterion(output, target, ...) plus what a network learns from a teacher, for your own training loop.

    The second term is `weight` times the divergence of the network's outputs from the teacher's. With teacher "self",
    the same network with all gates open runs in the same step, learns from the labels by `criterion`, and teaches the
    gated network (in-place distillation). In a network with routes a random route of each image learns from the teacher
    too, and the gater learns which of the two routes is nearer to the teacher.

    It composes with `GateLoss`: ``criterion = gw.GateLoss(gw.TeacherLoss(cross_entropy, net), net)``. Like that, it
    adds nothing in eval mode, and neither network nor teacher is a submodule.

    Args:
        criterion: a module or function of output and target that returns a tensor.
        model: the network that learns, or a module that contains it.
        teacher: "self" for a `GaterNet`, or a trained network, which is put into eval mode.
        temperature: T of the divergence.
        weight: weight of the divergence.
        divergence: function of outputs, teacher's outputs and T that returns one number for each image, (N,); by
            default T^2 KL(teacher || network) over the classes on axis 1.

    Raises:
        InvalidTypeError: an argument has the wrong type.
        InvalidValueError: the teacher is "self", and `model` contains no GaterNet.

    >>> from gatewise import GaterNet
    >>> net = GaterNet(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), image_size=(8, 8))
    >>> criterion = TeacherLoss(nn.functional.mse_loss, net)
    >>> criterion(net(torch.randn(2, 3, 8, 8)), torch.zeros(2, 4, 4, 4)).requires_grad
    True
    """

    def __init__(
        self,
        criterion: Callable[..., Tensor],
        model: nn.Module,
        teacher: str | nn.Module = SELF,
        *,
        temperature: float = 4.0,
        weight: float = 0.5,
        divergence: Divergence = class_divergence,
    ) -> None:
        super().__init__()
        _validation.check_module("TeacherLoss", model)
        if not callable(criterion):
            raise errors.InvalidTypeError(
                f"criterion must be a module or a function, got {_validation.safe_repr(criterion)}."
            )
        _validation.check_number_between(1e-3, 1e3, temperature=temperature)
        _validation.check_number_between(0, 1e3, weight=weight)
        self.criterion, self.divergence = criterion, divergence
        self.temperature, self.weight = temperature, weight
        gated = [module for module in model.modules() if isinstance(module, GaterNet)]
        self._networks = (model, gated[0] if gated else None, _checked_teacher(teacher, gated))  # no submodules
        for net in gated:
            net.companions = frozenset({"random", "dense"} if teacher == SELF else {"random"})

    def forward(self, output: Any, target: Any, *args: Any, images: Tensor | None = None, **options: Any) -> Tensor:
        """Return the loss; `images` are those of the batch, needed unless the network teaches itself."""
        return self.criterion(output, target, *args, **options) + self.lesson(output, target, images)

    def lesson(self, output: Any, target: Any, images: Tensor | None = None) -> Tensor:
        """Return what is added to criterion(output, target), a scalar; 0 in eval mode or without gates to teach."""
        model, gated, teacher = self._networks
        learned = main_output(output)
        others = None if gated is None else gated.companion_outputs()
        nothing = learned.new_zeros(())
        if not model.training:
            return nothing
        if teacher is None:
            if others is None or others.dense is None:
                self._warn_if_missing()
                return nothing
            dense = main_output(others.dense)
            return self.criterion(dense, target) + self._taught(learned, dense.detach(), others)
        if images is None:
            raise errors.InvalidValueError(
                "TeacherLoss needs the images that the teacher sees: criterion(output, target, images=images)."
            )
        with torch.no_grad(), evaluation_mode(teacher):
            goal = main_output(teacher(images))
        return self._taught(learned, goal, others)

    def _taught(self, learned: Tensor, goal: Tensor, others: CompanionOutputs | None) -> Tensor:
        """Return the terms that pull outputs towards the teacher's, and the gater towards the nearer route."""
        own = self.divergence(learned, goal, self.temperature)
        if others is None or others.random is None:
            return self.weight * own.mean()
        _, gated, _ = self._networks
        assert gated is not None
        assert gated.selection is not None
        assert others.logits is not None
        assert others.routes is not None
        random = self.divergence(main_output(others.random), goal, self.temperature)
        preference = gated.selection.preference_loss(others.logits, others.routes, torch.stack([own, random], 1))
        return self.weight * (own.mean() + random.mean() + preference)

    def _warn_if_missing(self) -> None:
        _, gated, _ = self._networks
        if torch.is_grad_enabled() and gated is not None and not gated.all_open:
            warnings.warn(
                "this loss has nothing from the dense network: it has not run since the last loss. Give TeacherLoss "
                "the network that runs, not a copy of it, and call it once per forward.",
                stacklevel=4,
            )


def _checked_teacher(teacher: object, gated: list[GaterNet]) -> nn.Module | None:
    """Return the teacher as a module, or None for "self"."""
    if isinstance(teacher, nn.Module):
        return teacher
    if teacher != SELF:
        raise errors.InvalidTypeError(f"teacher must be {SELF!r} or a network, got {_validation.safe_repr(teacher)}.")
    if not gated:
        raise errors.InvalidValueError(
            f"teacher {SELF!r} is the network with all gates open, and this network is no GaterNet. Give a trained "
            f"network as the teacher."
        )
    return None
