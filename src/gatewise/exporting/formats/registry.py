"""Registry of export formats: how a network is written to one file, and how the file is opened again.

Each format registers itself in its own file with `@register_format`. `gatewise export` and `gatewise predict`, their
help and their error messages read this registry.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import FORMAT
from gatewise.core.schema import checked_details

KEY = "gatewise"  # key of the metadata in the file
FILE_FORMAT = 1  # format number of the metadata


@dataclass(frozen=True)
class Exported:
    """An open exported file: (N, C, H, W) normalised images -> logits, or logits and gates.

    Attributes:
        file: the file.
        run: function that runs the network.
        text: metadata stored in the file, as JSON; "" if there is none.
    """

    file: Path
    run: Callable[[Tensor], Any]
    text: str

    def __call__(self, image: Tensor) -> Any:
        return self.run(image)

    @property
    def details(self) -> dict[str, Any]:
        """Metadata of the file: classes, mean, std, form, versions.

        Raises:
            DataError: the file was not written by `gatewise export`, or its metadata is invalid or of a newer format.
        """
        if not self.text:
            raise errors.DataError(
                f"{self.file} was not written by gatewise export: it has no metadata such as class names."
            )
        try:
            details = json.loads(self.text)
        except (ValueError, RecursionError):
            raise errors.DataError(f"the metadata of {self.file} is not valid JSON. Export the run again.") from None
        number = cast(dict[str, Any], details).get(FORMAT, FILE_FORMAT) if isinstance(details, dict) else FILE_FORMAT
        _validation.check_format_number(self.file, number, FILE_FORMAT)
        return dict(checked_details(self.file, details))


def metadata(details: Mapping[str, Any], **versions: Any) -> str:
    """Return the text to store in a file under the key "gatewise": its details and versions, as JSON."""
    return json.dumps({FORMAT: FILE_FORMAT, **details, "versions": {"torch": torch.__version__, **versions}})


class Format(ABC):
    """A kind of file that a network can be exported to.

    Attributes:
        name: key in the registry, what `--to` takes.
        suffix: end of the file's name, with its dot.
        title: name of the format, for help and error messages.
        extra: extra of gatewise that installs the packages it needs.
        why_not_opened: why files of this format are opened only to check what was just written, a sentence; None for
            formats that are data, which anybody may have written.
        quantises: whether `quantise` is implemented.
        composes: whether `compose` is implemented.
        takes_export_forms: whether gates are written in their `export_form`.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    title: ClassVar[str]
    extra: ClassVar[str]
    why_not_opened: ClassVar[str | None] = None
    quantises: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    takes_export_forms: ClassVar[bool] = False

    @abstractmethod
    def write(self, program: torch.export.ExportedProgram, details: Mapping[str, Any], output: str) -> bytes:
        """Return the content of a file.

        Args:
            program: the network: "image" (N, C, H, W) -> logits, or logits and gates; N is dynamic.
            details: metadata to store, which `metadata` turns into text.
            output: name of the first output, for formats whose outputs have names; the second is "gates".

        Raises:
            InvalidValueError: the format has no equivalent of an operation.
        """

    @abstractmethod
    def open(self, file: Path) -> Exported:
        """Open a file; raise `DataError` if it is damaged."""

    def quantise(self, file: Path, batches: Iterable[Tensor]) -> None:
        """Quantise a file in place to int8; `batches` are normalised images, (N, C, H, W)."""
        raise NotImplementedError

    def compose(self, chooser: bytes, networks: Sequence[bytes], details: Mapping[str, Any], output: str) -> bytes:
        """Return the content of one file in which each image runs through the network that is chosen for it.

        Args:
            chooser: content of a file: "image" -> "route", int64 (N,), and "gates" (N, gates).
            networks: content of a file for each route: "image" -> `output`.
            details: metadata to store.
            output: name of the first output; the others are "route" and "gates".
        """
        raise NotImplementedError

    def package(self, name: str, purpose: str) -> ModuleType:
        """Import a package that the format needs; raise `MissingExtraError` if it is not installed."""
        return _validation.import_optional(name, purpose, self.extra)


_registry: dict[str, Format] = {}
Kind = TypeVar("Kind", bound=Format)


def register_format(name: str, *, suffix: str, title: str, extra: str = "export") -> Callable[[type[Kind]], type[Kind]]:
    """Return a decorator that registers a `Format` class; `Format` documents the arguments.

    Raises:
        InvalidValueError: the name or the suffix is in use.
    """
    for known in _registry.values():
        if name == known.name or suffix == known.suffix:
            raise errors.InvalidValueError(
                f"export format {name!r} (*{suffix}) is taken by {known.name!r} (*{known.suffix}). Choose another name "
                f"and suffix."
            )

    def register(kind: type[Kind]) -> type[Kind]:
        kind.name, kind.suffix, kind.title, kind.extra = name, suffix, title, extra
        _registry[name] = kind()
        return kind

    return register


def formats(*, opened: bool = False) -> list[Format]:
    """Return all formats, or those whose files are opened, in alphabetical order of their names."""
    chosen = [form for form in _registry.values() if not (opened and form.why_not_opened)]
    return sorted(chosen, key=lambda form: form.name)


def format_named(name: str) -> Format:
    """Return a format by name; raise `InvalidValueError` if the name is unknown."""
    return _registry[_validation.check_one_of("format", name, _registry)]


def format_of(file: Path) -> Format | None:
    """Return the format of a file by its suffix, or None if no format has it."""
    return next((form for form in formats() if form.suffix == file.suffix), None)


def describe_formats() -> str:
    """Return the formats as text: "onnx (ONNX, *.onnx), ..."."""
    return ", ".join(f"{form.name} ({form.title}, *{form.suffix})" for form in formats())


def opened_suffixes() -> str:
    """Return the suffixes of the files that are opened, as text: "*.onnx, ..."."""
    return ", ".join(f"*{form.suffix}" for form in formats(opened=True))
