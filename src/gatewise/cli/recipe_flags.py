"""The flags of the recipe, from a stored description, so that help and typing mistakes need not import torch.

`make docs` writes `description.json`, and a test compares it with the code. It lists the files that register tasks,
data sources and export formats; in a package with other files the description is read from the code, which is slower.
"""

import dataclasses
import functools
import json
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

from cyclopts import Parameter

from gatewise.cli.app import NOT_GIVEN, literal, parse_integer, parse_optional_integer

if TYPE_CHECKING:
    from gatewise.training import Recipe

_STORED = Path(__file__).with_name("description.json")
_PACKAGE = Path(__file__).parent.parent
_REGISTERING = ("data/sources", "exporting/formats", "training/tasks")
_TYPES: dict[str, Any] = {"bool": bool, "float": float, "int": int, "str": str, "NoneType": NoneType}


def _registering_files() -> list[str]:
    """Return the files that register what help texts list."""
    return sorted(
        file.relative_to(_PACKAGE).as_posix() for name in _REGISTERING for file in (_PACKAGE / name).glob("*.py")
    )


def describe() -> dict[str, Any]:
    """Return the description as the code has it: the fields of the recipe, and the formats of exported files."""
    from gatewise.exporting.formats.registry import describe_formats, opened_suffixes
    from gatewise.training import Recipe
    from gatewise.training.options import Sections

    sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Sections)}
    owners = {field.name: name for name, section in sections.items() for field in dataclasses.fields(section)}
    fields: list[dict[str, Any]] = [
        {
            "name": field.name,
            "section": owners[field.name],
            "types": _typed(field),
            "default": field.default,
            "help": field.metadata["help"],
        }
        for field in dataclasses.fields(Recipe)
    ]
    formats = {"written": describe_formats(), "opened": opened_suffixes()}
    return {"files": _registering_files(), "recipe": fields, "formats": formats}


def _typed(field: "dataclasses.Field[Any]") -> list[str]:
    """Return the types that a flag is parsed as; None, typed "none", is none of them if "none" is a word."""
    kinds = cast(tuple[type, ...], get_args(field.type) or (field.type,))
    return [kind.__name__ for kind in kinds if kind is not NoneType or not field.metadata["none_is_word"]]


@functools.cache
def description() -> dict[str, Any]:
    """Return the stored description, or that of the code if the package has other files."""
    stored: dict[str, Any] = json.loads(_STORED.read_text(encoding="utf-8"))
    return stored if stored["files"] == _registering_files() else describe()


def recipe_flags(name: str, *sections: str, omitted: Sequence[str] = ()) -> type:
    """Return a dataclass with one optional flag per recipe field: `NOT_GIVEN` by default, None if "none" was typed.

    Args:
        name: name of the class.
        sections: names of sections of the recipe, such as data; none means all.
        omitted: fields without a flag.
    """
    fields: list[tuple[str, Any, Any]] = []
    for field in description()["recipe"]:
        if field["name"] not in omitted and (not sections or field["section"] in sections):
            text = literal(f"{field['help']} [{field['default']}]")
            parsed = parse_optional_integer if "NoneType" in field["types"] else parse_integer
            converter = parsed if "int" in field["types"] else None
            parameter = Parameter(help=text, show_default=False, converter=converter)
            kinds = [_TYPES[kind] for kind in sorted(field["types"], key="NoneType".__ne__)]  # text is tried last
            kind: Any = functools.reduce(operator.or_, kinds)
            fields.append((field["name"], Annotated[kind, parameter], dataclasses.field(default=NOT_GIVEN)))
    # cyclopts reads the fields only if __module__ is one of our modules; make_dataclass would set "types".
    return dataclasses.make_dataclass(name, fields, kw_only=True, frozen=True, namespace={"__module__": __name__})


def with_names_of_flags(message: str) -> str:
    """Return a message about fields of the recipe with the flags that set them.

    >>> with_names_of_flags("got a batch of 7. Choose another batch_size, or set task to segment.")
    'got a batch of 7. Choose another --batch-size, or give --task segment.'
    >>> with_names_of_flags("config.json has no 'image_size'; in Python Segmenter(image_size=32)")
    "config.json has no 'image_size'; in Python Segmenter(image_size=32)"
    """
    names = [field["name"] for field in description()["recipe"]]
    message = re.sub(rf"\bset ({'|'.join(names)}) to\b", lambda found: f"give {flag_of(found[1])}", message)
    in_code = "|".join(name for name in names if "_" in name)  # these are no English words
    return re.sub(rf"(?<![\w'\"./=-])({in_code})(?![\w'\"(/=])", lambda found: flag_of(found[1]), message)


def flag_of(name: str) -> str:
    """Return the flag that sets a field."""
    return f"--{name.replace('_', '-')}"


def given_flags(flags: Any) -> dict[str, Any]:
    """Return the values of the flags that were given, by field."""
    names = [field.name for field in dataclasses.fields(flags)]
    return {name: getattr(flags, name) for name in names if getattr(flags, name) is not NOT_GIVEN}


def with_flags(file: Path | None, flags: Any) -> "Recipe":
    """Return the recipe in `file`, or the default recipe, with the given flags applied."""
    from gatewise.models import import_network
    from gatewise.training import Recipe

    base = Recipe.load(file) if file else Recipe()
    given = given_flags(flags)
    if "model" in given:
        import_network(given["model"])
    return dataclasses.replace(base, **given)


def store() -> None:
    """Write the description as the code has it."""
    _STORED.write_text(json.dumps(describe(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
