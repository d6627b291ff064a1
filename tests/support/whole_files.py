"""Open every finished file of a run or a comparison: none may be corrupt, and files that belong together must agree."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from gatewise.training import Recipe

TIMES = {"seconds", "images_per_second", "latency_ms", "training_images_per_second", "training_speed"}


def files_of(folder: Path) -> list[Path]:
    """Return all files except those that are being written or removed, which have temporary names."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(part.endswith(".part") for part in path.relative_to(folder).parts)]


def corrupt_files(folder: Path) -> list[str]:
    """Return the errors in the files of a folder; there must be none, whenever a process was killed."""
    complaints = []
    for path in files_of(folder):
        try:
            _open(path)
        except Exception as error:
            complaints.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    if complaints:
        return complaints
    for weights, record in _pairs(folder):
        if hashlib.sha256(weights.read_bytes()).hexdigest() != json.loads(record.read_text())["sha256"]:
            complaints.append(f"{weights.relative_to(folder)}: not of the sha256 in {record.name}")
    return complaints


def _open(path: Path) -> None:
    """Read one file as its users do."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".json":
        json.loads(content)
    elif path.suffix == ".jsonl":
        assert content.endswith(b"\n")
        _ = [json.loads(line) for line in content.splitlines()]
    elif path.suffix == ".yaml":
        assert set(yaml.safe_load(content)) == {field.name for field in dataclasses.fields(Recipe)}
    elif path.suffix == ".svg":
        ElementTree.fromstring(content)
    elif path.suffix == ".html":
        assert content.rstrip().endswith(b"</html>")
    elif path.suffix == ".md":
        assert content.endswith(b"|\n")
    elif path.name.startswith("events."):  # appended to: readers stop before a last, incomplete event
        _ = list(RawEventFileLoader(str(path)).Load())
    elif path.name == ".lock":
        assert content == b""
    else:
        raise ValueError("unknown kind of file")


def _pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield tensors with the record of their sha256, if both exist."""
    for record in folder.rglob("*.json"):
        names = {"config.json": "model.safetensors", "state.json": "state.safetensors"}
        if record.name in names and not any(part.endswith(".part") for part in record.parts):
            weights = record.with_name(names[record.name])
            if weights.exists():
                yield weights, record


def outcome(folder: Path) -> dict[str, Any]:
    """Return the results of a training or comparison by file: bytes, or values where some of them are times."""
    found: dict[str, Any] = {}
    for path in files_of(folder):
        name = str(path.relative_to(folder))
        if path.parent.parent.name == "checkpoints" and path.parent != max(path.parent.parent.glob("step_*")):
            continue  # the older one depends on where a training was stopped
        if path.name in {"metrics.json", "results.json"}:
            found[name] = without_times(path, folder)
        elif path.suffix == ".jsonl":
            found[name] = [_without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix in {".safetensors", ".yaml", ".json"}:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.name.startswith("events."):
            found[name] = "there"  # drawn from the others, with times
    return found


def without_times(file: Path, folder: Path) -> dict[str, Any]:
    """Return a JSON file without times and without the name of the folder, which the commands in it have."""
    return _without_times(json.loads(file.read_text().replace(str(folder), "OUT")))


def _without_times(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_times(value) for key, value in values.items() if key not in TIMES}
    if isinstance(values, list):
        return [_without_times(value) for value in values if not _is_about_times(value)]
    return values


def _is_about_times(value: Any) -> bool:
    return isinstance(value, str) and "time for one image" in value


def leftovers(folder: Path) -> list[str]:
    """Return the files still named .part."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*.part")]
