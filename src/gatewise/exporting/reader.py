"""Open ONNX files of `gatewise export` with ONNX Runtime."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
    """An open ONNX file: (N, C, H, W) normalised images -> logits, or logits and gates.

    Attributes:
        file: the ONNX file.
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


def opened(file: str | Path) -> Exported:
    """Open an ONNX file with ONNX Runtime; raise `DataError`, without opening it, for a file of another format."""
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
    except Exception as error:  # the errors of ONNX Runtime have no other common base class
        raise _runtime_error(file, "opened", error) from None

    def run(image: Tensor) -> Any:
        try:
            outputs = [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]
        except Exception as error:
            raise _runtime_error(file, "run", error) from None
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return Exported(file, run, text)


def _runtime_error(file: Path, what: str, error: Exception) -> errors.DataError:
    reason = " ".join(str(error).split())[:200]
    return errors.DataError(f"{file} cannot be {what} by ONNX Runtime: {reason}.")


def details_of(file: str | Path) -> dict[str, Any]:
    """Return the metadata of an ONNX file of `gatewise export`; see `Exported.details`."""
    return opened(file).details
