"""Quantise the convolutions and matrix products of an ONNX file with ONNX Runtime's static quantisation."""

# pyright: basic

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.log_filters import without_records
from gatewise.core.reasons import as_data_error

_TYPES = ["Conv", "Gemm", "MatMul"]  # the expensive operators; gates, norms and additions between them stay in float32


def to_int8(file: Path, batches: Iterable[Tensor]) -> None:
    """Quantise an ONNX file in place: weights to int8 per output channel, inputs of the layers to uint8.

    Args:
        file: ONNX file of `export_run`.
        batches: calibration images, (N, C, H, W), over which the minimum and maximum of each activation are measured.

    Raises:
        TrainingError: ONNX Runtime cannot quantise this network; the file is not changed.
    """
    quantization = _validation.import_optional("onnxruntime.quantization", "int8", "export")
    images = iter(batches)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(images, None)
            return None if batch is None else {"image": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        prepared, written = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        with as_data_error("ONNX Runtime", "cannot quantise this network", kind=errors.TrainingError):
            # Symbolic shape inference fails on norms as in gct.
            quantization.quant_pre_process(file, prepared, skip_symbolic_shape=True)
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
def _without_advice() -> Iterator[None]:
    """Drop the general advice of ONNX Runtime on graphs, given as warnings and as records of the root logger."""
    folder = Path(str(_validation.import_optional("onnxruntime", "int8", "export").__file__)).parent
    with without_records(None, lambda record: folder in Path(record.pathname).parents), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"onnxruntime\b")
        yield
