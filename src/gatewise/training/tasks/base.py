"""The base class of tasks, with everything that training, comparison, prediction and export ask, and their scores."""

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gatewise.core import statistics
from gatewise.data import Dataset, DataSource, Kind, SegmentationDataset
from gatewise.data.band_image import BandImage
from gatewise.gaternet.teaching import class_divergence
from gatewise.gates.spec import ModelSpec
from gatewise.training.distributed import Processes


@dataclass(frozen=True)
class Score:
    """The number by which a task judges a network.

    Attributes:
        name: key in `metrics.json` and in the log.
        title: name as shown.
        is_fraction: whether it lies in [0, 1] and is shown in percent.
        higher_is_better: whether a larger value is better.
        lowest: lowest possible value of a score that is no fraction.
        highest: its highest possible value.
    """

    name: str
    title: str
    is_fraction: bool = True
    higher_is_better: bool = True
    lowest: float = -math.inf
    highest: float = math.inf

    @property
    def factor(self) -> float:
        """Factor from the stored to the shown number."""
        return 100.0 if self.is_fraction else 1.0

    @property
    def unit(self) -> str:
        """Unit of the shown number, after a space, or ""."""
        return " %" if self.is_fraction else ""

    @property
    def points(self) -> str:
        """Unit of a difference as shown, after a space, or ""."""
        return " points" if self.is_fraction else ""

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest possible stored number."""
        return (0.0, 1.0) if self.is_fraction else (self.lowest, self.highest)

    @property
    def label(self) -> str:
        """Title with the unit in parentheses, for axes."""
        return f"{self.title} (%)" if self.is_fraction else self.title

    @property
    def better_is(self) -> str:
        """Where better values are on a vertical axis: "above" or "below"."""
        return "above" if self.higher_is_better else "below"

    def number(self, value: float, sign: str = "") -> str:
        """Return a value as shown, without its unit; `sign` "+" shows the sign of a difference, "+" for zero.

        >>> mae = Score("mae", "error", is_fraction=False)
        >>> mae.number(1234.5678), mae.number(0.0123), mae.number(-1.5e-6, "+")
        ('1234.568', '0.012', '-1.5e-06')
        """
        return f"{100 * value:{sign}z.2f}" if self.is_fraction else decimal(value, 3, sign)

    def text(self, value: float | None) -> str:
        """Return a value as shown, with its unit; None and NaN are "not defined".

        >>> Score("accuracy", "accuracy").text(0.5), Score("mae", "error", is_fraction=False).text(0.5)
        ('50.00 %', '0.500')
        >>> ACCURACY.text(float("nan"))
        'not defined'
        """
        return "not defined" if value is None or math.isnan(value) else self.number(value) + self.unit


def decimal(value: float, decimals: int, sign: str = "") -> str:
    """Return a number with a fixed number of decimals, or a small one, which would lose its digits, with three digits.

    >>> decimal(2.5, 4), decimal(0.001234, 4), decimal(0.0, 3, "+")
    ('2.5000', '0.00123', '+0.000')
    """
    return f"{value:{sign}.3g}" if 0 < abs(value) < 0.01 else f"{value:{sign}z.{decimals}f}"


ACCURACY = Score("accuracy", "accuracy")


@dataclass(frozen=True)
class Mistake:
    """An image for which a network's answer is wrong.

    Attributes:
        image: index of the image.
        label: the right answer in words, or "" if a picture says it better.
        predicted: the network's answer in words.
        badness: how wrong it is; the largest is the worst.
    """

    image: int
    label: str
    predicted: str
    badness: float


class BatchResults(ABC):
    """Accumulates the results of one evaluation, batch by batch.

    Attributes:
        kept: tensors kept from each batch, by name.
        metrics: torchmetrics whose states are sums; after `merge` they cover all processes.
    """

    def __init__(self, *metrics: Any) -> None:
        self.kept: dict[str, list[Tensor]] = {}
        self.metrics = metrics

    def keep(self, **tensors: Tensor) -> None:
        """Append tensors of one batch to `kept`."""
        for name, tensor in tensors.items():
            self.kept.setdefault(name, []).append(tensor)

    def merge(self, processes: Processes) -> None:
        """Add the results of the other processes, in the order of their ranks.

        `metric_state` is public in torchmetrics, and its documentation describes states as attributes. Its own
        synchronisation would gather through the group of the gradients, and in an order that depends on timing.
        """
        sums = [{name: value.cpu() for name, value in metric.metric_state.items()} for metric in self.metrics]
        own = {name: [tensor.cpu() for tensor in tensors] for name, tensors in self.kept.items()}
        parts = processes.all_gather_object((sums, own))
        for index, metric in enumerate(self.metrics):
            for name, value in metric.metric_state.items():
                total = torch.stack([part[0][index][name] for part in parts]).sum(0)
                setattr(metric, name, total.to(value.device))
        names = dict.fromkeys(name for part in parts for name in part[1])
        self.kept = {name: [tensor for part in parts for tensor in part[1].get(name, [])] for name in names}

    @abstractmethod
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Return every score of the task under its name, and the loss, as JSON values; NaN where it is not defined.

        Entries that end in _by_class are mappings from class names to scores, None where a score is undefined.
        """

    @abstractmethod
    def record(self) -> dict[str, Tensor]:
        """Return tensors with one row per image, from which `Task.by_image` computes what a comparison needs."""


class Task(ABC):
    """What a network is trained to do, for the classes of one data set.

    The keyword-only parameters of a subclass's constructor and of its `source` are the task's options. Those that are
    fields of the recipe (mixup, crop_size, ...) are set there; the others are given in the task's name, as in
    "ordinal:width=2".

    Class attributes answer what is asked before there is a data set:

    Attributes:
        name: name in the registry.
        summary: what the network predicts, in a few words.
        scores: the scores by which a run can be judged; the first is the main score unless `score` says otherwise.
        labels: what a label is: "class" (an index for each image), "classes" (0 or 1 for each class) or "number" (one
            or more for each image); `gatewise.data.labels.targets` describes the tensors.
        pipeline_tag: task on the Hugging Face Hub.
        latency_batch: batch size of the second latency that a comparison measures.
        class_per_image: whether each image has a class, so that statistics by class of the image make sense.
        class_per_pixel: whether labels are masks, (N, H, W).
        any_size: whether images may have any size; otherwise they have the size of the training.
        files: what `prediction` writes to files, as a plural such as "masks", or "".
        output: name of the network's output in exported files.
        outputs_are: what the outputs stand for, as a plural.
        hit: what `hits` measures.
        groups_are: what `image_groups` are, as (singular, plural).
        use: a line of Python, for the model card, after `logits` have been computed; "" for none.
        classes: class names, in the order of the labels; or names of numbers.
        metric: the score that the user chose, or None.
        mix: function that mixes the images and labels of a training batch pairwise, or None.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    scores: ClassVar[tuple[Score, ...]]
    labels: ClassVar[Kind] = "class"
    pipeline_tag: ClassVar[str]
    latency_batch: ClassVar[int] = 32
    class_per_image: ClassVar[bool] = True
    class_per_pixel: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    files: ClassVar[str] = ""
    output: ClassVar[str] = "logits"
    outputs_are: ClassVar[str] = "classes"
    hit: ClassVar[Score] = ACCURACY
    groups_are: ClassVar[tuple[str, str]] = ("class", "classes")
    use: ClassVar[str] = ""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.metric: Score | None = None
        self.mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    @property
    def image_groups(self) -> tuple[str, ...]:
        """Names of the groups of images for which statistics of gates are given; by default the classes of images."""
        return self.classes if self.class_per_image else ()

    def groups_of(self, labels: Tensor) -> Tensor:
        """Return the group of each image, (N,), or which groups it is in, (N, groups); by default the labels."""
        return labels

    @classmethod
    def parameters(cls) -> dict[str, Any]:
        """Return the default of each option of the task, by name."""
        signatures = (inspect.signature(call).parameters for call in (cls.__init__, cls.source))
        return {name: p.default for each in signatures for name, p in each.items() if p.kind is p.KEYWORD_ONLY}

    @classmethod
    def source(cls, data: DataSource, *, class_names: str | None = None) -> DataSource:
        """Return where the images and labels come from; its `load` reads them.

        Args:
            data: the data set, and how it is read.
            class_names: the classes to keep; None keeps all that have training images.
        """
        return dataclasses.replace(data, labels=cls.labels, class_names=class_names)

    @classmethod
    def network(cls, spec: ModelSpec) -> ModelSpec:
        """Return the network that a recipe's `model` means for this task."""
        return spec

    # Training

    @property
    def default_score(self) -> Score:
        """The main score unless another is chosen."""
        return self.scores[0]

    @property
    def score(self) -> Score:
        """The main score."""
        return self.metric or self.default_score

    @property
    def outputs(self) -> int:
        """Number of logits per image or pixel."""
        return len(self.classes)

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:  # noqa: ARG002
        """Return the shape of the logits for a batch of one image of `size` (height, width)."""
        return 1, self.outputs

    def prepare(self, dataset: Dataset | SegmentationDataset) -> None:  # noqa: B027  (most tasks need nothing)
        """Compute what loss and `mix` need, such as class frequencies; called once before a training."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean training loss of a batch, a scalar."""

    def translated(self, logits: Tensor, source: "Task") -> Tensor:  # noqa: ARG002
        """Return what a network of this task has to return to say the same as one of `source` that returns `logits`."""
        return logits

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return how far each image's outputs are from those of a teacher, (N,)."""
        return class_divergence(logits, teacher, temperature)

    @abstractmethod
    def predicted(self, logits: Tensor) -> Tensor:
        """Return the predicted labels, of the shape of the labels."""

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return for each image whether its prediction is correct, to which fraction, or how wrong it is, (N,)."""
        return self.predicted(logits) == labels

    def constant(self, dataset: Dataset | SegmentationDataset) -> tuple[str, Tensor] | None:  # noqa: ARG002
        """Return the best answer that is the same for all images, from the training labels, or None.

        Returns:
            The answer in words, and the logits that give it, (outputs,).
        """
        return None

    def advice(self, dataset: Dataset | SegmentationDataset) -> str:  # noqa: ARG002
        """Return what the labels suggest to set, such as another metric, as a clause; "" for nothing."""
        return ""

    def stored(self) -> dict[str, Any]:
        """Return entries of `config.json` that are needed to read the network's output."""
        return {}

    def restore(self, config: Mapping[str, Any]) -> None:  # noqa: B027  (most tasks store nothing)
        """Take over what `stored` returned, from the content of `config.json`."""

    def readable(self, logits: Tensor) -> Tensor:
        """Return a network's output as exported files give it."""
        return logits

    @abstractmethod
    def new_results(self, device: torch.device) -> BatchResults:
        """Return empty results for one evaluation."""

    def why_undefined(self) -> str:
        """Return why the score of an evaluation can be NaN, and what to do, as a clause and a sentence."""
        return f"{self.score.title} of the validation images is not a number. Choose another split."

    def confusion(self, record: Mapping[str, Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return the number of images of each class (row) by the class that is predicted (column), or None."""
        return None

    def calibration(self, record: Mapping[str, Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return images, mean confidence and accuracy of each bin of confidences, (bins, 3), or None."""
        return None

    def images_by_class(self, record: Mapping[str, Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return the number of images of each class, (classes,), or None."""
        return None

    def mistakes(self, record: Mapping[str, Tensor]) -> list[Mistake]:  # noqa: ARG002
        """Return the images with wrong answers, the worst first."""
        return []

    # Comparison

    @abstractmethod
    def by_image(self, record: Mapping[str, Tensor]) -> Tensor:
        """Return what each image contributes to the score, (images, ...), from `BatchResults.record`."""

    def bootstrap(self, images: Tensor, baseline: Tensor, groups: Tensor | None = None) -> statistics.Estimate:
        """Return the difference of the scores with its interval over images.

        Args:
            images: results of `by_image`, (seeds, images, ...).
            baseline: the same for the baseline.
            groups: number of the group of each image, (images,); whole groups are drawn. None draws images.
        """
        return statistics.image_bootstrap(images, baseline, groups)

    # Prediction

    def pixels(self, image: BandImage, config: Mapping[str, Any]) -> Tensor:
        """Return an image as the network expects it, before normalisation: (C, H, W), 0 to 255.

        Args:
            image: an image of any size, with the channels of the training.
            config: image_size and scale (the recipe's image_size) of the training.
        """
        return image.fitted(*config["image_size"]).pixels()

    @abstractmethod
    def prediction(self, logits: Tensor, picture: Any, *, top_k: int, out: Path | None) -> dict[str, Any]:
        """Return the prediction for one image as JSON values.

        Args:
            logits: the network's output for the image, without the batch axis.
            picture: the image as a PIL image in RGB.
            top_k: number of classes to return.
            out: path without suffix for the files of this image, if the task writes `files`.
        """

    @classmethod
    @abstractmethod
    def describe(cls, prediction: Mapping[str, Any]) -> str:
        """Return a `prediction` as text for one line."""
