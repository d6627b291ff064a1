"""Registry of tasks, by name and with their options.

Each task registers itself in its own file with `@register_task`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.registry import Registry
from gatewise.data import DataSource
from gatewise.gates.spec import parse_choice
from gatewise.training.tasks.base import Score, Task

_registry: Registry[type[Task]] = Registry("task")
TaskClass = TypeVar("TaskClass", bound=type[Task])


def register_task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Return a decorator that registers a `Task` class under `name`.

    Raises:
        InvalidValueError: the name is in use or not an identifier, or a score of another task has the same name and
            another meaning.
    """
    _registry.check_new(name)

    def register(task: TaskClass) -> TaskClass:
        for score in task.scores:
            if (known := _scores().get(score.name, score)) != score:
                raise errors.InvalidValueError(f"score {score.name!r} is already {known}. Choose another name.")
        task.name = name
        _registry[name] = task
        return task

    return register


def task_names() -> tuple[str, ...]:
    """Return the names of all registered tasks in alphabetical order.

    >>> task_names()
    ('classify', 'multilabel', 'regress', 'segment')
    """
    return tuple(sorted(_registry))


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        InvalidValueError: the name is unknown; the message suggests the nearest known name.
    """
    return _registry.lookup(name)


def summaries() -> str:
    """Return a list of all tasks with their summaries.

    >>> summaries()
    'classify (one class per image), multilabel (any number of classes per image), ... or segment (one class per pixel)'
    """
    listed = [f"{name} ({_registry[name].summary})" for name in task_names()]
    return " or ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))


def _scores() -> dict[str, Score]:
    return {score.name: score for task in _registry.values() for score in task.scores}


def score_named(name: str) -> Score:
    """Return the score with a name from `metrics.json` or `results.json`.

    Raises:
        InvalidValueError: no registered task has such a score.
    """
    scores = _scores()
    return scores[_validation.check_one_of("score", name, scores)]


def main_score(row: Mapping[str, Any]) -> Score:
    """Return the main score of a row of the log: the first after the validation loss."""
    names = [name.removeprefix("validation_") for name in row if name.startswith("validation_")]
    return score_named(next(name for name in names if name != "loss"))


def score_words() -> str:
    """Return the names of the scores of each task, the main one first, for help."""
    listed = [f"{name} {', '.join(score.name for score in _registry[name].scores)}" for name in task_names()]
    return "; ".join(listed)


@dataclass(frozen=True)
class TaskSpec:
    """A task with its options.

    Attributes:
        kind: class of the task.
        options: options of its constructor and of its `source`, by name.
        metric: name of the score to judge by; None takes the task's main score.

    >>> TaskSpec.parse("segment").kind.summary
    'one class per pixel'
    """

    kind: type[Task]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    metric: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "name:option=value,..."; the fields of the recipe that the task uses are not options here.

        Raises:
            InvalidValueError: the task or an option is unknown.
        """
        name, options = parse_choice("a task", text)
        kind = task_class(name)
        _validation.check_known_options(f"task {name!r}", options, kind.parameters())
        return cls(kind, options)

    def make(self, classes: Sequence[str]) -> Task:
        """Return the task for the classes of a data set.

        Raises:
            InvalidValueError: an option is out of range, or the task has no such score.
        """
        task = self.kind(classes, **self._of(self.kind.__init__))
        if self.metric is not None:
            scores = {score.name: score for score in self.kind.scores}
            task.metric = scores[_validation.check_one_of(f"metric of task {self.kind.name}", self.metric, scores)]
        return task

    def source(self, data: DataSource) -> DataSource:
        """Return where images and labels come from, given the data set."""
        return self.kind.source(data, **self._of(self.kind.source))

    def _of(self, call: Callable[..., Any]) -> dict[str, Any]:
        """Return those options that a function has as parameters."""
        return {name: value for name, value in self.options.items() if name in inspect.signature(call).parameters}
