"""Import the packages of the tests once for all forked children: no module of gatewise, and no parallel region."""

import contextlib
import gc
import importlib
import os
import sys
import warnings

MODULES = (
    "accelerate",
    "cyclopts",
    "datasets",
    "hypothesis",
    "jinja2",
    "matplotlib.pyplot",
    "numba",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "PIL.Image",
    "playwright.sync_api",
    "pyarrow.parquet",
    "pytest",
    "rich",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.decomposition",
    "tensorboard.backend.event_processing.event_accumulator",
    "timm.optim",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.export",
    "torch.onnx",
    "torch.utils.tensorboard",
    "torch_pruning",
    "torchmetrics",
    "torchvision",
    "yaml",
)


def warm_up() -> None:
    """Import installed packages, with one thread for each library, and freeze them in the garbage collector."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    os.environ.setdefault("MPLBACKEND", "agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
    importlib.import_module("torch").set_num_threads(1)
    assert "gatewise" not in sys.modules, "a fork would test this package, and no mutant"
    gc.collect()
    gc.freeze()
