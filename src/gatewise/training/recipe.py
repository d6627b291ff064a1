"""All options that determine the result of a training, as one frozen dataclass that is saved with the results."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import yaml

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_text, write_atomically
from gatewise.core.run_files import RELATIVE_TO
from gatewise.data import DataSource
from gatewise.gaternet.teaching import SELF
from gatewise.gates.spec import ModelSpec, format_gates, parse_gates, parse_value
from gatewise.insertion.tuning import Stage, fine_tuning_stages
from gatewise.models.pretrained import is_pretrained, pretrained_side
from gatewise.training.options import (
    AugmentationOptions,
    DataOptions,
    ModelOptions,
    OptimisationOptions,
    Schedule,
    Sections,
    TaskOptions,
)
from gatewise.training.recipe_paths import absolute_paths, is_same, relative_paths
from gatewise.training.tasks import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe means, with every default chosen.

    Attributes:
        title: gates and seed, in front of each line of progress.
        spec: the network and its gates.
        task: the task with its options.
        task_in_full: the task as text with all its own options.
        source: the data set and the options for reading it.
        initial_weights: file or run folder with initial weights.
        initial_gater: file or run folder with weights of the gater's feature extractor.
        teacher: the teacher's run folder, or `SELF` for the network itself, or None.
        teacher_weight: weight of the divergence from the teacher.
        teacher_temperature: temperature of both softmaxes.
        stages: the training stages.
        schedule: the learning rate of each step of a stage.
        optimisation: how long and how the network is optimised.
        augmentation: how training images are varied.
    """

    title: str
    spec: ModelSpec
    task: TaskSpec
    task_in_full: str
    source: DataSource
    initial_weights: str | None
    initial_gater: str | None
    teacher: str | None
    teacher_weight: float
    teacher_temperature: float
    stages: list[Stage]
    schedule: Schedule
    optimisation: OptimisationOptions
    augmentation: str


@dataclass(frozen=True, kw_only=True)
class Recipe(AugmentationOptions, OptimisationOptions, ModelOptions, DataOptions, TaskOptions):
    """The options of one training; each field is also a flag of the command line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise errors.InvalidValueError(
                f"mixup and cutmix mix pairs; batch_size must be even, got {self.batch_size}."
            )

    def sections(self) -> Sections:
        """Return the options by section: task, data, model, optimisation and augmentation."""
        return Sections.of(vars(self))

    def plan(self) -> Plan:
        """Return what a training is built from."""
        return Plan(
            title=f"{format_gates(self.plain_spec.gates)} seed {self.seed}",
            spec=self.spec,
            task=self.task_spec,
            task_in_full=self.task_in_full,
            source=self.source,
            initial_weights=self.initial_weights,
            initial_gater=self.initial_gater,
            teacher=self.teacher_folder or self.teacher,
            teacher_weight=self.teacher_weight,
            teacher_temperature=self.teacher_temperature,
            stages=self.stages,
            schedule=self.schedule,
            optimisation=self.sections().optimisation,
            augmentation=self.augmentation,
        )

    @property
    def spec(self) -> ModelSpec:
        """The network and its gates; for segment, the name of a backbone means a segmenter with that backbone."""
        return self.task_spec.kind.network(self.plain_spec)

    @property
    def source(self) -> DataSource:
        """The data set and the options for reading it."""
        return dataclasses.replace(self.task_spec.source(self.data_source), preferred_size=pretrained_side(self.spec))

    @property
    def schedule(self) -> Schedule:
        """The learning rate of each step of a stage; a tenth for pretrained weights if `lr` is not set."""
        rate = self.chosen_lr * (0.1 if self.lr is None and is_pretrained(self.spec) else 1.0)
        return Schedule(rate, self.warmup)

    def resolved(self) -> Self:
        """Return the recipe with the learning rate that it means, so that a later default changes no older run."""
        return dataclasses.replace(self, lr=self.schedule.lr)

    @property
    def stages(self) -> list[Stage]:
        """The training stages; routes from scratch are preceded by a stage with all gates open."""
        dense = self.dense_epochs
        if dense is None:
            routed = any(choice.options.get("routes") for choice in self.plain_spec.gates)
            trained = self.init is not None or is_pretrained(self.spec)
            dense = (self.epochs - self.gate_epochs) // 2 if routed and not trained else 0
        return fine_tuning_stages(self.epochs, self.gate_epochs, dense)

    @property
    def initial_weights(self) -> str | None:
        """`init` with {seed} replaced by the seed."""
        return self.init and self.init.replace("{seed}", str(self.seed))

    @property
    def initial_gater(self) -> str | None:
        """`gater_init` with {seed} replaced by the seed."""
        return self.gater_init and self.gater_init.replace("{seed}", str(self.seed))

    @property
    def teacher_folder(self) -> str | None:
        """`teacher` with {seed} replaced by the seed; None if the network teaches itself."""
        return self.teacher.replace("{seed}", str(self.seed)) if self.teacher and self.teacher != SELF else None

    def of_comparison(self, gate: str, seed: int) -> Self:
        """Return the recipe of one run of a comparison, for this gate and seed.

        `gate_epochs` is reset to 0 if no gate has parameters. Without a gater `gater_init`, `dense_epochs` and a
        teacher that is the network itself are reset to None.
        """
        gates = (*ModelSpec.parse(self.model).gates, *parse_gates(gate))
        gate_epochs = self.gate_epochs if any(choice.learns for choice in gates) else 0
        gated = any(choice.is_gater for choice in gates)
        without: dict[str, Any] = {} if gated else {"gater_init": None, "dense_epochs": None}
        if not gated and self.teacher == SELF:
            without["teacher"] = None
        return dataclasses.replace(self, gate=gate, seed=seed, gate_epochs=gate_epochs, **without)

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

        Its relative paths are relative to the folder in `relative_to`, if the file has this entry.

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
        if (folder := values.pop(RELATIVE_TO, None)) is not None:
            values = absolute_paths(values, Path(_validation.check_str(f"{path}: {RELATIVE_TO}", folder)))
        for field in dataclasses.fields(cls):
            if field.type in {float, float | None} and isinstance(text := values.get(field.name), str):
                values[field.name] = parse_value(text)  # YAML 1.1 reads 1e-3 as a string
        try:
            return cls.from_dict(values)
        except errors.GatewiseError as error:
            raise type(error)(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the recipe to a YAML file, with the working folder as `relative_to` if it has relative paths."""
        values, here = dataclasses.asdict(self), Path.cwd()
        start = {RELATIVE_TO: str(here)} if relative_paths(values, here) else {}
        write_atomically(path, yaml.safe_dump({**values, **start}, sort_keys=False))

    def check_same_recipe(self, now: "Recipe", folder: Path) -> None:
        """Raise `InvalidValueError` if the recipe `now` differs from this recipe, which is stored in `folder`."""
        there, here = (dataclasses.asdict(recipe) for recipe in (self, now))
        differing = [
            f"{name} {value!r} there, {here[name]!r} now"
            for name, value in there.items()
            if name != "keep_checkpoint" and not is_same(name, value, here[name])
        ]
        if differing:
            raise errors.InvalidValueError(
                f"{folder} contains a run of another recipe: {'; '.join(differing)}. Choose another --out; to train a "
                f"finished run longer, add --init {folder}."
            )


def _described() -> str:
    """Return the fields and their help texts as the section "Attributes" of a docstring."""
    lines = [f"        {field.name}: {field.metadata['help']}." for field in dataclasses.fields(Recipe)]
    return "\n".join([f"{Recipe.__doc__}\n", "    Attributes:", *lines, "    "])


Recipe.__doc__ = _described()
