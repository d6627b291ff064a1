"""Archives of torch.export."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gatewise.exporting.formats.registry import KEY, Exported, Format, metadata, register_format


@register_format("torch", suffix=".pt2", title="an archive of torch.export")
class TorchExport(Format):
    """A program for torch itself, such as AOTInductor."""

    why_not_opened = (
        "A .pt2 file is a program: open it with torch.export.load in your own code, if you trust its source."
    )

    def write(self, program: torch.export.ExportedProgram, details: Mapping[str, Any], output: str) -> bytes:  # noqa: ARG002
        buffer = io.BytesIO()
        with warnings.catch_warnings():  # of weights in channels_last that layers share; the reopened file is compared
            warnings.filterwarnings("ignore", message="No complete tensor found in the group")
            torch.export.save(program, buffer, extra_files={KEY: metadata(details)})
        return buffer.getvalue()

    def open(self, file: Path) -> Exported:
        extra: dict[str, Any] = {KEY: ""}
        network = torch.export.load(file, extra_files=extra).module()
        return Exported(file, network, str(extra[KEY]))
