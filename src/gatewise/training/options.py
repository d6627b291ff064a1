"""The options of a training in five sections; each field is written once, with its default and its help text.

`Recipe` inherits from the sections, so its YAML file and its flags are flat.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.data import IGNORED, LOADINGS, DataSource, LabelledSource, MaskedSource, describe_sources
from gatewise.data.augmentation import parse_augmentation
from gatewise.data.reading import Reading, option
from gatewise.gaternet.teaching import SELF
from gatewise.gates.spec import ModelSpec, format_choice, parse_gates
from gatewise.insertion.tuning import fine_tuning_stages
from gatewise.training.tasks import TaskSpec, score_words, summaries

CLASS_WEIGHTS = ("none", "balanced", "median_frequency")
_LR, _ADAPTIVE_LR = 0.1, 0.001  # peak learning rates for weights from scratch
_ADAPTIVE = ("adam", "adan", "lamb", "lion", "adabelief", "rmsprop")  # parts of names of optimizers
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base class of the sections: checks that fields declared as text are text."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            kinds = {str: (str,), str | None: (str, type(None))}.get(field.type, ())  # type: ignore[call-overload]
            if kinds and not isinstance(value, kinds):
                raise errors.InvalidTypeError(
                    f"{name} must be text, got {_validation.safe_repr(value)} ({type(value).__name__})."
                )


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Section):
    """What the network is trained to do, and the options that only some tasks use."""

    task: str = option("classify", f"{summaries()}, with its own options after a colon")
    metric: str | None = option(None, f"score to judge by, none the first of its task: {score_words()}")
    label_smoothing: float = option(0.0, "fraction of the target that is spread evenly over all classes")
    mixup: float = option(0.0, "alpha of mixup; 0 disables it")
    cutmix: float = option(
        0.0, "alpha of CutMix; 0 disables it; with mixup enabled too, each batch uses one of the two at random"
    )
    crop_size: int | None = option(
        None, "for segment, side in pixels of the square training crop; none uses the size of the first image"
    )
    ignore_index: int = option(IGNORED, "for segment, mask value of pixels that are excluded from loss and score")
    class_names: str | None = option(
        None,
        "the classes to keep, separated by commas, in the order of the outputs; for segment, names of the mask values, "
        "of which none reads classes.txt or uses numbers",
    )
    foreground: str | None = option(
        None, "for segment, train a binary segmenter for this class; none keeps all classes"
    )
    mask_threshold: float | None = option(
        None,
        "for segment, value from which a pixel of a mask is foreground (128); none takes values as class indices",
    )
    class_weights: str = option(
        "none",
        "none, balanced (classify, multilabel) or median_frequency (segment) to give rare classes more weight in the "
        "loss",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _validation.check_number_between(0, 1, label_smoothing=self.label_smoothing)
        _validation.check_number_between(0, 10, mixup=self.mixup, cutmix=self.cutmix)
        _check_side(crop_size=self.crop_size)
        _validation.check_one_of("class_weights", self.class_weights, CLASS_WEIGHTS)
        _validation.check_integer_at_least(0, ignore_index=self.ignore_index)
        if self.mask_threshold is not None:
            _validation.check_number_between(1e-6, 2**32, mask_threshold=self.mask_threshold)
        self._check_all_used()
        self.task_spec.make(("a", "b"))  # raises if an option of its own is out of range

    def _check_all_used(self) -> None:
        """Raise if an option is set that this task ignores, or in two places."""
        spec = TaskSpec.parse(self.task)
        used = spec.kind.parameters()
        for field in dataclasses.fields(TaskOptions):
            value = getattr(self, field.name)
            if field.name in spec.options:
                raise errors.InvalidValueError(
                    f"{field.name} is an option of the recipe, not of task {self.task!r}. Set {field.name} instead."
                )
            if field.name not in {"task", "metric", *used} and value != field.default:
                raise errors.InvalidValueError(
                    f"{field.name} is {_validation.safe_repr(value)}, but task {self.task} does not use it. "
                    f"Omit it, or set task."
                )

    @property
    def task_spec(self) -> TaskSpec:
        """The task with all options that it uses."""
        spec = TaskSpec.parse(self.task)
        fields = {field.name for field in dataclasses.fields(TaskOptions)}
        given = {name: getattr(self, name) for name in spec.kind.parameters() if name in fields}
        return dataclasses.replace(spec, options={**spec.options, **given}, metric=self.metric)

    @property
    def task_in_full(self) -> str:
        """`task` with all its own options, so that a later default changes no older run."""
        spec = TaskSpec.parse(self.task)
        fields = {field.name for field in dataclasses.fields(TaskOptions)}
        own = {name: default for name, default in spec.kind.parameters().items() if name not in fields}
        return format_choice(spec.kind.name, {**own, **spec.options})


@dataclass(frozen=True, kw_only=True)
class DataOptions(Section, Reading):
    """The data set, and how it is read and divided."""

    data: str = option("digits", f"{describe_sources(LabelledSource)}; for segment {describe_sources(MaskedSource)}")
    image_size: int | None = option(
        None,
        "side in pixels to which images are scaled and cropped, for segment the shorter side; none keeps their size, "
        "or chooses one if they differ in size",
    )
    loading: str = option("auto", "auto (decode a split of up to 1 GiB once, stream a larger one), memory, or stream")

    def __post_init__(self) -> None:
        super().__post_init__()
        Reading.__post_init__(self)
        _check_side(image_size=self.image_size)
        _validation.check_one_of("loading", self.loading, LOADINGS)

    @property
    def data_source(self) -> DataSource:
        """The data set, of which a task says what its labels are."""
        reading = Reading(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Reading)})
        return DataSource(data=self.data, image_size=self.image_size, loading=self.loading, reading=reading)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Section):
    """The network, its gates and its initial weights."""

    model: str = option(
        "resnet20",
        "name of the network, with options after a colon (resnet18_cifar:width=32), or MODULE:FUNCTION of your own, "
        "called with num_classes and in_chans (mynets:build:width=32); for segment u2net, u2net_small or "
        "a timm backbone (resnet18:output_stride=8)",
    )
    gate: str = option("none", "none, or gates with options and places (gct:mode=l1@before_conv), joined by +")
    init: str | None = option(
        None,
        "run folder or safetensors file with initial weights; {seed} is replaced by the seed, and gates without stored "
        "weights are newly initialised",
    )
    gater_init: str | None = option(
        None,
        "weights of a plain network with the gater's architecture, loaded into the gater's feature extractor; {seed} "
        "is replaced by the seed",
    )
    teacher: str | None = option(
        None,
        "what the network learns from in addition to the labels: self (a gater's network with all gates open, in the "
        "same step) or the run folder of a trained network; {seed} is replaced by the seed",
    )
    teacher_weight: float = option(0.5, "weight of the divergence from the teacher's outputs in the loss")
    teacher_temperature: float = option(
        4.0, "temperature T of both softmaxes; the divergence is multiplied by its square"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _validation.check_number_between(0, 1e3, teacher_weight=self.teacher_weight)
        _validation.check_number_between(1e-3, 1e3, teacher_temperature=self.teacher_temperature)
        spec = self.plain_spec
        if self.teacher == SELF and not any(choice.is_gater for choice in spec.gates):
            raise errors.InvalidValueError(
                "teacher self is the network with all gates open, and there is no gater. Add gaternet to gate, or give "
                "the run folder of a trained network."
            )

    @property
    def plain_spec(self) -> ModelSpec:
        """The network as named, and the gates of `model` and `gate`."""
        plain = ModelSpec.parse(self.model)
        return ModelSpec(plain.model, plain.model_options, plain.gates + parse_gates(self.gate))


@dataclass(frozen=True)
class Schedule:
    """The learning rate in a stage: linear warm-up to `lr` over the fraction `warmup`, then cosine decay to 0."""

    lr: float
    warmup: float

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of one step.

        Args:
            step: index of the step in its stage, from 0.
            steps: number of steps of the stage.

        >>> schedule = Schedule(lr=1.0, warmup=0.5)
        >>> [round(schedule.rate(step, 8), 2) for step in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True, kw_only=True)
class OptimisationOptions(Section):
    """How long and how the network is optimised."""

    epochs: int = option(20, "number of passes over the training images")
    gate_epochs: int = option(
        0, "number of epochs, at the start, that train only the gates and freeze all other parameters"
    )
    dense_epochs: int | None = option(
        None,
        "number of epochs, at the start, that train a gater's network with all gates open; none takes half of the "
        "epochs for routes that start from scratch, otherwise 0",
    )
    seed: int = option(0, "random seed of the initial weights, the data order and the augmentation")
    batch_size: int = option(
        128, "images per step over all processes; the last incomplete batch of an epoch is dropped"
    )
    lr: float | None = option(
        None,
        "peak learning rate, for this batch size; none takes 0.1, 0.001 for Adam and the like, and a tenth for "
        "pretrained weights",
    )
    warmup: float = option(
        0.2, "fraction of a stage's steps in which the learning rate rises linearly to lr; cosine decay to 0 follows"
    )
    momentum: float = option(
        0.9, "momentum of SGD (Nesterov) and of other optimizers that have one; betas are timm's defaults"
    )
    weight_decay: float = option(5e-4, "weight decay of all parameters except those that a gate exempts")
    optimizer: str = option("sgd", "any optimizer name of timm's create_optimizer_v2")
    ema: float = option(
        0.0, "decay of the exponential moving average of the weights, which is evaluated and saved; 0 disables it"
    )
    compile: bool = option(False, "compile the network with torch.compile for training; evaluations are not compiled")
    keep_checkpoint: bool = option(
        False, "keep the last checkpoint of a finished run, for the state of its optimizer; otherwise it is removed"
    )
    precision: str = option(
        "auto", "auto (bf16 where the hardware supports it), fp32, bf16 or fp16 autocast; evaluations are in float32"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _validation.check_integer_at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        _validation.check_integer_at_least(0, seed=self.seed)
        _validation.check_number_between(0, 2**31 - 1, seed=self.seed)
        _validation.check_number_between(1e-8, 1e3, lr=self.chosen_lr)
        _validation.check_number_between(0, 0.99, warmup=self.warmup, momentum=self.momentum)
        _validation.check_number_between(0, 1, weight_decay=self.weight_decay)
        _validation.check_number_between(0, 0.999999, ema=self.ema)
        _validation.check_one_of("precision", self.precision, PRECISIONS)
        _validation.check_bool(compile=self.compile, keep_checkpoint=self.keep_checkpoint)
        fine_tuning_stages(self.epochs, self.gate_epochs, self.dense_epochs or 0)  # raises if they do not fit

    @property
    def chosen_lr(self) -> float:
        """The peak learning rate that is set, or that of the optimizer for weights from scratch."""
        if self.lr is not None:
            return self.lr
        return _ADAPTIVE_LR if any(word in self.optimizer.lower() for word in _ADAPTIVE) else _LR


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions(Section):
    """How training images are varied."""

    augmentation: str = option(
        "auto",
        "auto (chosen for the data set), none, or shift, crop, flip and a timm policy (rand-m9) joined by +; for "
        "segment scale, crop and flip",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_augmentation(self.augmentation)


def _check_side(**sides: int | None) -> None:
    for name, side in sides.items():
        if side is not None:
            _validation.check_integer_at_least(4, **{name: side})
            _validation.check_number_between(4, 4096, **{name: side})


@dataclass(frozen=True)
class Sections:
    """All options of a training, by section."""

    task: TaskOptions
    data: DataOptions
    model: ModelOptions
    optimisation: OptimisationOptions
    augmentation: AugmentationOptions

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Sections":
        """Distribute flat values over the sections."""
        kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
        return cls(**{
            section: kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
            for section, kind in kinds.items()
        })
