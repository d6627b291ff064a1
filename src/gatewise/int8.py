"""Convolutions and matrix products of an ONNX file in int8, by ONNX Runtime's static quantisation."""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gatewise import _checks

_TYPES = ["Conv", "Gemm", "MatMul"]  # what takes the time; gates, norms and additions between them stay in float32


def to_int8(file: Path, batches: Iterable[Tensor]) -> None:
    """Rewrite an ONNX file: weights in int8 for each output channel, inputs of the layers in uint8.

    Args:
        file: as `export_run` writes it.
        batches: images that show the range of every map: its smallest and largest value.
    """
    quantization = _checks.optional_module("onnxruntime.quantization", "int8", "export")
    shapes = _checks.optional_module("onnxruntime.quantization.shape_inference", "int8", "export")
    images = iter(batches)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(images, None)
            return None if batch is None else {"image": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, written = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        shapes.quant_pre_process(file, prepared)
        quantization.quantize_static(
            prepared,
            written,
            Reader(),
            op_types_to_quantize=_TYPES,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        file.write_bytes(written.read_bytes())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the quantiser advises of graphs in general."""
    root = logging.getLogger()
    before, root.disabled = root.disabled, True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        root.disabled = before
