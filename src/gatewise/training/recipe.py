"""All options that determine the result of a training, as one frozen dataclass that is saved with the results."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
import yaml

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_text, write_atomically
from gatewise.data import IGNORED, LOADINGS, DataSource
from gatewise.data.augmentation import parse_augmentation
from gatewise.gates.spec import ModelSpec, parse_gates, parse_value
from gatewise.insertion.tuning import Stage, fine_tuning_stages
from gatewise.models import LABELS_PIXELS, SEGMENTER

TASKS = ("classify", "segment")
CLASS_WEIGHTS = ("none", "median_frequency")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_CLASSIFICATION_FIELDS = ("mixup", "cutmix")
_SEGMENTATION_FIELDS = ("crop_size", "ignore_index", "class_names", "foreground", "class_weights")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of one training; each field is also a flag of the command line.

    Attributes:
        task: classify (one class per image) or segment (one class per pixel).
        data: name, address or folder of the images, as `gatewise.data.describe_sources` lists them.
        model: name of the network, with options after a colon (resnet18_cifar:width=32); for segment u2net,
            u2net_small or a timm backbone (resnet18:output_stride=8).
        gate: none, or gates with options and places (gct:mode=l1@before_conv), joined by +.
        init: run folder or safetensors file with initial weights; {seed} is replaced by the seed, and gates without
            stored weights are newly initialised.
        gater_init: weights of a plain network with the gater's architecture, loaded into the gater's feature
            extractor; {seed} is replaced by the seed.
        epochs: number of passes over the training images.
        gate_epochs: number of epochs, at the start, that train only the gates and freeze all other parameters.
        seed: random seed of the initial weights, the data order and the augmentation.
        batch_size: images per step over all processes; the last incomplete batch of an epoch is dropped.
        lr: peak learning rate, for this batch size.
        warmup: fraction of a stage's steps in which the learning rate rises linearly to lr; cosine decay to 0 follows.
        momentum: momentum of SGD (Nesterov) and of other optimizers that have one; betas are timm's defaults.
        weight_decay: weight decay of all parameters except those that a gate exempts.
        optimizer: any optimizer name of timm's create_optimizer_v2.
        label_smoothing: fraction of the target that is spread evenly over all classes.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it; with mixup enabled too, each batch uses one of the two at random.
        ema: decay of the exponential moving average of the weights, which is evaluated and saved; 0 disables it.
        augmentation: auto (chosen for the data set), none, or shift, crop, flip and a timm policy (rand-m9) joined by
            +; for segment scale, crop and flip.
        image_size: side in pixels to which images are scaled and cropped, for segment the shorter side; none keeps
            their size.
        crop_size: for segment, side in pixels of the square training crop; none uses the size of the first image.
        ignore_index: for segment, mask value of pixels that are excluded from loss and score.
        class_names: for segment, names of the mask values, separated by commas; none reads classes.txt or uses numbers.
        foreground: for segment, train a binary segmenter for this class; none keeps all classes.
        class_weights: for segment, none, or median_frequency to give rare classes more weight in the loss.
        loading: auto (decode a split of up to 1 GiB once, stream a larger one), memory, or stream.
        precision: auto (bf16 where the hardware supports it), fp32, bf16 or fp16 autocast.
    """

    task: str = "classify"
    data: str = "digits"
    model: str = "resnet20"
    gate: str = "none"
    init: str | None = None
    gater_init: str | None = None
    epochs: int = 20
    gate_epochs: int = 0
    seed: int = 0
    batch_size: int = 128
    lr: float = 0.1
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    augmentation: str = "auto"
    image_size: int | None = None
    crop_size: int | None = None
    ignore_index: int = IGNORED
    class_names: str | None = None
    foreground: str | None = None
    class_weights: str = "none"
    loading: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            kinds = {str: (str,), str | None: (str, type(None))}.get(field.type, ())  # type: ignore[call-overload]
            if kinds and not isinstance(value, kinds):
                raise errors.InvalidTypeError(
                    f"{name} must be text, got {_validation.safe_repr(value)} ({type(value).__name__})."
                )
        _validation.check_integer_at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        _validation.check_integer_at_least(0, seed=self.seed)
        _validation.check_number_between(0, 2**31 - 1, seed=self.seed)
        _validation.check_number_between(1e-8, 1e3, lr=self.lr)
        _validation.check_number_between(0, 0.99, warmup=self.warmup, momentum=self.momentum)
        _validation.check_number_between(0, 1, weight_decay=self.weight_decay, label_smoothing=self.label_smoothing)
        for name in ("image_size", "crop_size"):
            if (side := getattr(self, name)) is not None:
                _validation.check_integer_at_least(4, **{name: side})
                _validation.check_number_between(4, 4096, **{name: side})
        _validation.check_one_of("task", self.task, TASKS)
        _validation.check_one_of("class_weights", self.class_weights, CLASS_WEIGHTS)
        _validation.check_integer_at_least(0, ignore_index=self.ignore_index)
        self._check_task_fields()
        _validation.check_number_between(0, 10, mixup=self.mixup, cutmix=self.cutmix)
        _validation.check_number_between(0, 0.999999, ema=self.ema)
        _validation.check_one_of("loading", self.loading, LOADINGS)
        _validation.check_one_of("precision", self.precision, PRECISIONS)
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise errors.InvalidValueError(
                f"mixup and cutmix mix pairs; batch_size must be even, got {self.batch_size}."
            )
        parse_augmentation(self.augmentation)
        _ = self.spec
        fine_tuning_stages(self.epochs, self.gate_epochs)

    def _check_task_fields(self) -> None:
        """Raise if options are set that this task ignores."""
        foreign = _CLASSIFICATION_FIELDS if self.task == "segment" else _SEGMENTATION_FIELDS
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in foreign and value != field.default:
                raise errors.InvalidValueError(
                    f"{field.name} is {_validation.safe_repr(value)}, but task {self.task} does not use it. "
                    f"Omit it, or set task."
                )

    @property
    def spec(self) -> ModelSpec:
        """The network and its gates; for segment, the name of a backbone means a segmenter with that backbone."""
        plain = ModelSpec.parse(self.model)
        gates = plain.gates + parse_gates(self.gate)
        if self.task == "segment" and plain.model not in LABELS_PIXELS:
            return ModelSpec(SEGMENTER, {"backbone": plain.model, **plain.model_options}, gates)
        return ModelSpec(plain.model, plain.model_options, gates)

    @property
    def source(self) -> DataSource:
        """The data set and the options for reading it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(DataSource)}
        return DataSource(**fields)

    @property
    def stages(self) -> list[Stage]:
        """The training stages, each with its epochs."""
        return fine_tuning_stages(self.epochs, self.gate_epochs)

    @property
    def initial_weights(self) -> str | None:
        """`init` with {seed} replaced by the seed."""
        return self.init and self.init.replace("{seed}", str(self.seed))

    @property
    def initial_gater(self) -> str | None:
        """`gater_init` with {seed} replaced by the seed."""
        return self.gater_init and self.gater_init.replace("{seed}", str(self.seed))

    def of_comparison(self, gate: str, seed: int) -> Self:
        """Return the recipe of one run of a comparison, for this gate and seed.

        `gate_epochs` is reset to 0 if no gate has parameters, and `gater_init` to None if there is no gater.
        """
        gates = (*ModelSpec.parse(self.model).gates, *parse_gates(gate))
        gate_epochs = self.gate_epochs if any(choice.learns for choice in gates) else 0
        gater_init = self.gater_init if any(choice.is_gater for choice in gates) else None
        return dataclasses.replace(self, gate=gate, seed=seed, gate_epochs=gate_epochs, gater_init=gater_init)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a recipe from plain values.

        Raises:
            InvalidValueError: a name is unknown; the message suggests the nearest known one.
        """
        _validation.check_mapping("a recipe", values)
        _validation.check_known_options("the recipe", values, [field.name for field in dataclasses.fields(cls)])
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a recipe from a YAML file.

        Raises:
            DataError: the file is not valid YAML or not a mapping.
            InvalidValueError: an option is unknown or out of range.
        """
        path = _validation.check_path_exists("recipe", path)
        text = read_text(path)
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
            raise errors.DataError(f"{path} is not valid YAML ({reason}).") from None
        if not isinstance(content, dict):
            raise errors.DataError(f"{path} is not a recipe; expected lines such as 'epochs: 20'.")
        values = cast(dict[str, Any], content)
        for field in dataclasses.fields(cls):
            if field.type is float and isinstance(text := values.get(field.name), str):
                values[field.name] = parse_value(text)  # YAML 1.1 reads 1e-3 as a string
        try:
            return cls.from_dict(values)
        except errors.GatewiseError as error:
            raise type(error)(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the recipe to a YAML file."""
        write_atomically(path, yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    def check_same_recipe(self, now: "Recipe", folder: Path) -> None:
        """Raise `InvalidValueError` if the recipe `now` differs from this recipe, which is stored in `folder`."""
        differing = [
            f"{field.name} {getattr(self, field.name)!r} there, {getattr(now, field.name)!r} now"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(now, field.name)
        ]
        if differing:
            raise errors.InvalidValueError(
                f"{folder} contains a run of another recipe: {'; '.join(differing)}. Choose another --out."
            )

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of one step: linear warm-up, then cosine decay to 0.

        Args:
            step: index of the step in its stage, from 0.
            steps: number of steps of the stage.

        >>> recipe = Recipe(lr=1.0, warmup=0.5)
        >>> [round(recipe.learning_rate(step, 8), 2) for step in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision, with "auto" resolved for `device`: bf16 where the hardware supports it, else fp32.

    Raises:
        InvalidValueError: fp16 was requested on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise errors.InvalidValueError("precision fp16 needs a GPU, got a CPU; use bf16, fp32 or auto.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
    return "fp32"
