"""The teacher of a training: a finished run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core.types import main_output
from gatewise.data import Dataset, SegmentationDataset
from gatewise.models.serialization import load_model
from gatewise.training.tasks import Task, TaskSpec


class TeacherRun(nn.Module):
    """The network of a run, for images that are normalised by another mean and deviation: (N, C, H, W) -> its output.

    Args:
        model: the network.
        config: its `config.json`, with its mean and std.
        mean: mean per channel by which the images are normalised, (C,).
        std: their standard deviation, (C,).
        translate: function of its outputs that returns what the network that is taught would have to return.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: nn.Module, config: Any, mean: Tensor, std: Tensor, translate: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        own_mean, own_std = torch.tensor(config["mean"]), torch.tensor(config["std"])
        self.model, self.translate = model.requires_grad_(False), translate
        self.register_buffer("scale", (std / own_std).reshape(1, -1, 1, 1))
        self.register_buffer("shift", ((mean - own_mean) / own_std).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.translate(main_output(self.model(torch.addcmul(self.shift, x, self.scale))))


def load_teacher(
    folder: str, task: Task, dataset: Dataset | SegmentationDataset, mean: Tensor, std: Tensor
) -> nn.Module:
    """Return the network of a run as a teacher of a task for images of `dataset`, normalised by `mean` and `std`.

    Raises:
        DataError: the folder has no run, or one of another task, other classes or channels.
    """
    model, config = load_model(folder)
    spec = TaskSpec.parse(config.get("task", "classify"))
    if spec.kind.name != task.name:
        raise errors.DataError(
            f"the teacher {folder} was trained with task {spec.kind.name}, this training has task {task.name}. Choose "
            f"a run of the same task."
        )
    there, here = list(config.get("classes", ())), list(dataset.classes)
    if there != here:
        raise errors.DataError(
            f"the teacher {folder} was trained for the classes {', '.join(there[:5])}, the data has "
            f"{', '.join(here[:5])}. Choose a run on the same data."
        )
    if len(config["mean"]) != dataset.channels:
        raise errors.DataError(
            f"the teacher {folder} was trained on images of {len(config['mean'])} channels, the data has "
            f"{dataset.channels}. Choose a run on the same data."
        )
    own = spec.make(there)
    own.restore(config)
    return TeacherRun(model, config, mean, std, partial(task.translated, source=own))
