"""Count how often reading `train(recipe)` call by call leads from file to file.

    python tools/follow_recipe.py [--source FOLDER] [--json]

It trains a small network on scikit-learn's digits, calls `train` once more with `resume`, and records with
`sys.setprofile` the functions of gatewise on the recipe's way. A function is on the way if

- one of its arguments is a `Recipe` or one of its sections (so its methods and properties are),
- one of its arguments holds one as an attribute (so the methods of an object with `self.recipe` are), or
- it reads a field of one.

What is counted: a *step* is a call from one function on the way to the next, made from another file; the caller is the
nearest function below it on the stack that is on the way. Each pair of caller and called function counts once, however
often it is called, so the numbers depend neither on the images nor on the epochs. A step into a file that was visited
before is a step *back*.

The checks of values in `__post_init__`, and what they call, do not count: they are not on the way of the recipe.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
_CHECKS = "__post_init__"


class Followed:
    """Records the steps of a recipe.

    Attributes:
        steps: (caller's file, file) of each step, relative to the package.
        calls: names of the caller and the called function of each step.
    """

    def __init__(self, package: Path, kinds: tuple[type, ...]) -> None:
        self.package, self.kinds = str(package), kinds
        self.on_the_way: dict[FrameType, None] = {}
        self.seen: set[tuple[CodeType, CodeType]] = set()
        self.steps: list[tuple[str, str]] = []
        self.calls: list[tuple[str, str]] = []

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        if event == "return":
            self.on_the_way.pop(frame, None)
        elif event == "call" and any(map(self.is_or_holds_recipe, _arguments(frame))):
            self.enter(frame)

    def is_or_holds_recipe(self, value: object) -> bool:
        """Return whether a value is a recipe or a section, or has one as an attribute."""
        if isinstance(value, self.kinds):
            return True
        attributes = getattr(value, "__dict__", None) if type(value).__module__.startswith("gatewise") else None
        return any(isinstance(held, self.kinds) for held in (attributes or {}).values())

    def enter(self, frame: FrameType) -> None:
        """Record a function that receives a recipe or reads a field of one."""
        while frame.f_code.co_name.startswith("<") and frame.f_back is not None:  # a comprehension or a lambda
            frame = frame.f_back
        inside = frame.f_code.co_filename.startswith(self.package) and frame.f_code.co_name != _CHECKS
        if not inside or frame in self.on_the_way:
            return
        caller = frame.f_back
        while caller is not None and caller not in self.on_the_way:
            if caller.f_code.co_name == _CHECKS:
                return
            caller = caller.f_back
        self.on_the_way[frame] = None
        if caller is None or (pair := (caller.f_code, frame.f_code)) in self.seen:
            return
        self.seen.add(pair)
        files = tuple(str(Path(code.co_filename).relative_to(self.package)) for code in pair)
        if files[0] != files[1]:
            self.steps.append(files)  # type: ignore[arg-type]
            self.calls.append((caller.f_code.co_name, frame.f_code.co_name))


def _arguments(frame: FrameType) -> Iterator[object]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    for name in code.co_varnames[:count]:
        yield frame.f_locals.get(name)


def _kinds(recipe: type) -> tuple[type, ...]:
    """Return `Recipe`, the sections that it inherits from, and the dataclass that holds them, if there is one."""
    kinds = [kind for kind in recipe.__mro__ if dataclasses.is_dataclass(kind)]
    options = sys.modules.get("gatewise.training.options")
    return (*kinds, *([options.Sections] if options is not None else []))


def follow(source: Path) -> Followed:
    """Train with the package in the folder `source`, and return what was recorded."""
    sys.path.insert(0, str(source))
    training = importlib.import_module("gatewise.training")
    module = importlib.import_module("gatewise.training.recipe")
    recipe = module.Recipe(
        gate="gct", epochs=2, gate_epochs=1, ema=0.9, mixup=0.2, batch_size=1024, augmentation="shift", precision="fp32"
    )
    kinds = _kinds(module.Recipe)
    followed = Followed(Path(module.__file__).parent.parent, kinds)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}

    def reading(self: Any, name: str) -> Any:
        if name in fields:
            followed.enter(sys._getframe(1))
        return object.__getattribute__(self, name)

    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            kind.__getattribute__ = reading  # type: ignore[method-assign]
        sys.setprofile(followed.profile)
        try:
            for resume in (False, True):
                training.train(recipe, Path(folder) / "run", resume=resume)
        finally:
            sys.setprofile(None)
    return followed


def main() -> None:
    """Print the steps and their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="folder that contains the package")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    followed = follow(options.source)
    visited: list[str] = []
    rows = []
    for (caller, file), (here, there) in zip(followed.steps, followed.calls, strict=True):
        visited = visited or [caller]
        rows.append({"from": f"{caller} {here}", "to": f"{file} {there}", "return": file in visited})
        visited.append(file)
    returns = sum(row["return"] for row in rows)
    if options.json:
        print(json.dumps({"steps": rows, "files": len(set(visited)), "returns": returns}))
        return
    for row in rows:
        print(f"{'back' if row['return'] else 'new ':4}  {row['from']} -> {row['to']}")
    print(
        f"{len(set(visited))} files, {len(rows)} steps from file to file, {returns} of them back into an earlier file"
    )


if __name__ == "__main__":
    main()
