"""ONNX files that `export` wrote, opened by ONNX Runtime."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gatewise import _validation, errors
from gatewise.files import FORMAT
from gatewise.schema import checked_details

KEY = "gatewise"  # of what is written into the file beside the graph
FILE_FORMAT = 1  # of what a file says of itself


@dataclass(frozen=True)
class Exported:
    """An ONNX file, open: a function of images that gives logits, or logits and gates.

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
            raise errors.DataError(
                f"{self.file} was not written by gatewise export: it does not say what its classes are."
            )
        try:
            details = json.loads(self.text)
        except (ValueError, RecursionError):
            raise errors.DataError(f"{self.file} says of itself what is no JSON. Export the run again.") from None
        found = cast(dict[str, Any], details).get(FORMAT, FILE_FORMAT) if isinstance(details, dict) else FILE_FORMAT
        _validation.check_format_number(self.file, found, FILE_FORMAT)
        return dict(checked_details(self.file, details))


def opened(file: str | Path) -> Exported:
    """Open an ONNX file by ONNX Runtime; others are refused with `DataError`, unopened."""
    file = _validation.check_path_exists("exported file", file)
    if file.suffix != ".onnx":
        raise errors.DataError(
            f"{file} was not opened: gatewise reads run folders, folders of save_pretrained, and ONNX files (*.onnx). "
            f"A .pt2 file is a program: open it with torch.export.load in your own code, if you trust its source."
        )
    runtime = _validation.import_optional("onnxruntime", "reading ONNX")
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    except Exception as error:  # ONNX Runtime's own kinds have no common base but this
        raise _refusal(file, "opened", error) from None

    def run(image: Tensor) -> Any:
        try:
            found = [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]
        except Exception as error:
            raise _refusal(file, "run", error) from None
        return tuple(found) if len(found) > 1 else found[0]

    return Exported(file, run, text)


def _refusal(file: Path, what: str, error: Exception) -> errors.DataError:
    reason = " ".join(str(error).split())[:200]
    return errors.DataError(f"{file} cannot be {what} by ONNX Runtime: {reason}.")


def details_of(file: str | Path) -> dict[str, Any]:
    """Return what an ONNX file of `export` says of itself: classes, mean and std, form, versions."""
    return opened(file).details
