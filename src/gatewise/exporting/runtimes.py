"""The runtimes in which a trained network can run on a processor, and how each is made ready to be timed."""

# pyright: basic

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.core import _validation
from gatewise.graph.structural_copy import full_copy
from gatewise.inference.routed import RoutedNet

Call = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        title: name with capitals.
        reads_files: whether it runs ONNX files, and otherwise networks.
        precisions: of the networks that it runs.
        ready: function from the network or file and the number of threads to a function of images.
        extra: extra of gatewise that installs it; None is part of torch.
    """

    title: str
    reads_files: bool
    precisions: tuple[str, ...]
    ready: Callable[[Any, int], Call]
    extra: str | None = None


def _eager(network: nn.Module, threads: int) -> Call:  # noqa: ARG001  # the caller sets torch's threads
    return network


def _compiled(network: nn.Module, threads: int) -> Call:  # noqa: ARG001
    copied = full_copy(network)
    if not isinstance(copied, RoutedNet):
        return torch.compile(copied)
    compiled: Any = [torch.compile(own) for own in copied.networks]  # the choice stays in Python
    copied.networks = nn.ModuleList(compiled)
    return copied


def _onnxruntime(file: Path, threads: int) -> Call:
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images.numpy()})


def _openvino(file: Path, threads: int) -> Call:
    core = package("openvino").Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled: dict[tuple[int, ...], Any] = {}

    def run(images: Tensor) -> Any:
        shape = tuple(images.shape)
        if shape not in compiled:  # a fixed shape is faster than a free one
            model = core.read_model(str(file))
            model.reshape({"image": list(shape)})
            compiled[shape] = core.compile_model(model, "CPU", options).create_infer_request()
        return compiled[shape].infer({"image": images.numpy()})

    return run


RUNTIMES: Mapping[str, Runtime] = {
    "torch": Runtime("PyTorch", False, ("float32",), _eager),
    "compile": Runtime("torch.compile", False, ("float32",), _compiled),
    "onnxruntime": Runtime("ONNX Runtime", True, ("float32", "int8"), _onnxruntime, "export"),
    "openvino": Runtime("OpenVINO", True, ("float32", "int8"), _openvino, "openvino"),
}
PRECISIONS = ("float32", "int8")


def package(name: str) -> Any:
    """Import the package of a runtime, which has its name.

    Raises:
        MissingExtraError: it is not installed.
    """
    runtime = RUNTIMES[name]
    return _validation.import_optional(name, f"timing in {runtime.title}", runtime.extra or "export")


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those runtimes that are packages of their own, by name."""
    return {name: metadata.version(name) for name in names if RUNTIMES[name].extra}
