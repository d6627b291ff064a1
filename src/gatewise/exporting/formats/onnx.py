"""ONNX files, opened with ONNX Runtime."""

# pyright: basic

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise.core.reasons import as_data_error
from gatewise.exporting.formats.registry import KEY, Exported, Format, metadata, register_format
from gatewise.exporting.global_pooling import pool_globally
from gatewise.exporting.int8 import to_int8

_SIDES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}  # by the rank of the images


@register_format("onnx", suffix=".onnx", title="ONNX")
class Onnx(Format):
    """A graph of standard operators, for ONNX Runtime and many other runtimes."""

    quantises = True
    composes = True
    takes_export_forms = True

    def write(self, program: torch.export.ExportedProgram, details: Mapping[str, Any], output: str) -> bytes:
        self.package("onnxscript", "export to ONNX")
        names = [output, "gates"][: len(program.graph_signature.user_outputs)]
        example: Any = program.example_inputs
        ((image, *_), _) = example
        axes = {0: "batch", **dict(enumerate(_SIDES.get(image.dim(), ()), start=2))}
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=names,
            dynamic_shapes=(axes,),  # names of the axes that the program leaves free
        )
        proto: Any = exported.model_proto  # type: ignore[union-attr]
        pool_globally(proto.graph)
        return _with_details(proto, details)

    def open(self, file: Path) -> Exported:
        runtime = self.package("onnxruntime", "reading ONNX")
        with as_data_error(file, "cannot be opened by ONNX Runtime"):  # its errors have no other common base class
            session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            text = session.get_modelmeta().custom_metadata_map.get(KEY, "")

        def run(image: Tensor) -> Any:
            with as_data_error(file, "cannot be run by ONNX Runtime"):
                outputs = [torch.from_numpy(output) for output in session.run(None, {"image": image.numpy()})]
            return tuple(outputs) if len(outputs) > 1 else outputs[0]

        return Exported(file, run, text)

    def quantise(self, file: Path, batches: Iterable[Tensor]) -> None:
        to_int8(file, batches)

    def compose(self, chooser: bytes, networks: Sequence[bytes], details: Mapping[str, Any], output: str) -> bytes:
        onnx = self.package("onnx", "export to ONNX")
        from gatewise.exporting.route_graph import compose

        parts = [onnx.load_from_string(content) for content in (chooser, *networks)]
        return _with_details(compose(parts[0], parts[1:], output), details)


def _with_details(proto: Any, details: Mapping[str, Any]) -> bytes:
    """Return the content of a file with its metadata."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=metadata(details, opset=proto.opset_import[0].version))
    return proto.SerializeToString()
