"""Files that `export` wrote, opened by what reads them elsewhere."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise import _checks
from gatewise.archive import checked_archive
from gatewise.details import checked_details
from gatewise.files import FORMAT
from gatewise.log_filters import without_records

KEY = "gatewise"  # of what is written into the file beside the graph
FILE_FORMAT = 1  # of what a file says of itself


@dataclass(frozen=True)
class Exported:
    """An exported file, open: a function of images that gives logits, or logits and gates.

    Attributes:
        file: that it was read from.
        run: the function.
        text: what the file says of itself, as JSON; "" where it says nothing.
    """

    file: Path
    run: Callable[[Tensor], Any]
    text: str

    def __call__(self, image: Tensor) -> Any:
        return self.run(image)

    @property
    def details(self) -> dict[str, Any]:
        """Classes, mean and std, form, versions; with `DataError` refused: written by others, or of a newer format."""
        if not self.text:
            raise _checks.DataError(
                f"{self.file} was not written by gatewise export: it does not say what its classes are."
            )
        try:
            details = json.loads(self.text)
        except (ValueError, RecursionError):
            raise _checks.DataError(f"{self.file} says of itself what is no JSON. Export the run again.") from None
        found = details.get(FORMAT, FILE_FORMAT) if isinstance(details, dict) else FILE_FORMAT
        _checks.known_format(self.file, found, FILE_FORMAT)
        return dict(checked_details(self.file, details))


def opened(file: str | Path) -> Exported:
    """Open an exported file by what reads it, ONNX Runtime or torch.export; others are refused with `DataError`."""
    file = _checks.existing_path("exported file", file)
    return _opened_onnx(file) if file.suffix == ".onnx" else _opened_torch(file)


def _opened_onnx(file: Path) -> Exported:
    runtime = _checks.optional_module("onnxruntime", "reading ONNX")
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own kinds have no common base but this
        reason = " ".join(str(error).split())[:200]
        raise _checks.DataError(f"{file} cannot be opened by ONNX Runtime: {reason}.") from None

    def run(image: Tensor) -> Any:
        found = [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]
        return tuple(found) if len(found) > 1 else found[0]

    return Exported(file, run, session.get_modelmeta().custom_metadata_map.get(KEY, ""))


def _opened_torch(file: Path) -> Exported:
    extra = {KEY: ""}
    try:
        with without_records("torch.export", lambda _: True):  # the traceback of what it stumbles over, line by line
            run = torch.export.load(checked_archive(file), extra_files=extra).module()
    except _checks.GatewiseError:
        raise
    except Exception as error:  # whatever the archive's reader stumbles over
        reason = " ".join(str(error).split())[:200]
        raise _checks.DataError(f"{file} is no archive of torch.export ({reason}).") from None
    return Exported(file, run, extra[KEY])


def details_of(file: str | Path) -> dict[str, Any]:
    """Return what an exported file says of itself: classes, mean and std, form, versions."""
    return opened(file).details
