"""The folder of one input: its files, and a snapshot that must be unchanged afterwards."""

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from support.fuzzing.values import Hostile


class Evil:
    """An object whose pickle writes a file when it is opened."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.canary, "w")


class Box:
    """One input's folder.

    Attributes:
        rng: from which all of this input is drawn.
        hostile: values drawn from it.
        base: folder of good files, which are only read.
        inputs: folder of this input's files; none may change.
        out: the only place where anything may be written.
        home: the current folder during the call, which stays empty.
        canary: a file that appears when something is executed.
    """

    def __init__(self, root: Path, base: Path, seed: str) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.root, self.base, self.rng = root, base, Random(seed)
        self.inputs, self.out, self.home = root / "in put é", root / "out", root / "home"
        for folder in (self.inputs, self.home):
            folder.mkdir(parents=True)
        self.canary = root.parent / "executed"
        self.hostile = Hostile(self.rng, str(self.canary))
        os.chdir(self.home)

    def copied(self, name: str) -> Path:
        """Copy a good file or folder into the inputs."""
        source, target = self.base / name, self.inputs / Path(name).name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return target

    def corrupted(self, name: str) -> Path:
        """Copy a good file and change its bytes."""
        file = self.copied(name)
        file.write_bytes(self.hostile.changed_bytes(file.read_bytes()))
        return file

    def evil_pickle(self) -> bytes:
        """Return a pickle that writes the canary when it is opened."""
        return pickle.dumps({"state_dict": Evil(str(self.canary))}, protocol=self.rng.choice((0, 2, 4)))

    def snapshot(self) -> dict[str, str]:
        """Return the files of the folder except those in `out`: path -> digest."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            if Path(folder) == self.root:
                folders[:] = [name for name in folders if name != self.out.name]
            for name in (*folders, *files):
                path = Path(folder, name)
                whole = path.is_file() and not path.is_symlink()
                found[str(path.relative_to(self.root))] = (
                    hashlib.blake2b(path.read_bytes()).hexdigest() if whole else ""
                )
        return found
