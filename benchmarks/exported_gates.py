"""Measure what gates cost in exported networks: as defined, and in their export form.

    python benchmarks/exported_gates.py [--gates gct,gc,se,eca] [--rounds 15] [--threads 1] [--out FILE]

A ResNet-50 at 224x224 for one image is exported to ONNX with each gate in its usual places, once with every gate as it
is defined and once as `gatewise export` writes it, and timed in turn with the network without gates in ONNX Runtime,
and in OpenVINO if it is installed; in PyTorch as it is ("torch") and after `optimize_for_inference` ("torch,
optimised", against the optimised network without gates). Two layers in the place of gct say where the limit is: one
that multiplies each channel by a number that comes from the image, "multiply", and one that only copies its map,
"copy". With one thread the time is that of the processor, which other programs hardly disturb. The pages of the gates
show what is in benchmarks/results/exported_gates-cpu.json.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from exported_files import INSTALLED, parser, publish, spread, timed
from torch import Tensor, nn

import gatewise as gw
from gatewise.exporting.formats import onnx as onnx_format
from gatewise.exporting.formats.registry import format_named
from gatewise.exporting.program import exported_program
from gatewise.graph.measure import Latency
from gatewise.insertion.insert import gates_in

FLOORS = ("copy", "multiply")


def multiply(x: Tensor) -> Tensor:
    """Scale each channel by a number that no runtime can fold into weights."""
    return x * (1 + 0 * x[:, :, :1, :1])


def copy(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 1)


def network(gate: str) -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.resnet50().eval()
    floors: dict[str, Callable[[Tensor], Tensor]] = {"multiply": multiply, "copy": copy}
    if gate != "none":
        gw.insert_gates(net, "gct" if gate in floors else gate)
    for each in gates_in(net).values():
        for parameter in each.parameters():
            nn.init.normal_(parameter, std=0.1)
        if gate in floors:
            each.__dict__["forward"] = floors[gate]
            each.__dict__["export_form"] = functools.partial(lambda form: form, floors[gate])
    return net


def write(net: nn.Module, file: Path, *, as_defined: bool) -> None:
    """Export a network, with `as_defined` without the rewrites of gatewise."""
    pool_globally = onnx_format.pool_globally
    if as_defined:
        onnx_format.pool_globally = lambda graph: None  # noqa: ARG005
    try:
        program = exported_program(net, torch.zeros(2, 3, 224, 224), free_size=False, export_forms=not as_defined)
        file.write_bytes(format_named("onnx").write(program, {}, "logits"))
    finally:
        onnx_format.pool_globally = pool_globally


def differences(files: dict[str, Path]) -> dict[str, float]:
    """Return for each gate how far the outputs of its two files are apart, relative to the largest output."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    outputs = {
        name: onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for name, file in files.items()
    }
    return {
        name: float(np.abs(output - outputs[f"{name}, as defined"]).max() / np.abs(output).max())
        for name, output in outputs.items()
        if f"{name}, as defined" in outputs
    }


def relative(times: dict[str, Latency]) -> dict[str, Any]:
    """Return milliseconds of each network, and its time relative to the network without gates."""
    return {
        name: {"ms": 1e3 * latency.median_s, "of_none": spread(latency.times(times["none"]))}
        for name, latency in times.items()
    }


def main() -> None:
    flags = parser(__doc__, threads=1)
    flags.add_argument("--gates", default="gct,gc,se,eca")
    arguments = flags.parse_args()
    torch.set_num_threads(arguments.threads)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    networks = {gate: network(gate) for gate in ("none", *FLOORS, *arguments.gates.split(","))}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for gate, net in networks.items():
            for as_defined in (False, True)[: 1 if gate in ("none", *FLOORS) else 2]:
                name = f"{gate}, as defined" if as_defined else gate
                files[name] = Path(folder, f"{len(files)}.onnx")
                write(net, files[name], as_defined=as_defined)
                print(f"{name}: written", flush=True)
        found = {"torch": relative(timed(networks, image, "torch", arguments))}
        gated = {name: gw.optimize_for_inference(net, image) for name, net in networks.items() if name not in FLOORS}
        found["torch, optimised"] = relative(timed(gated, image, "torch", arguments))
        for runtime in INSTALLED:
            found[runtime] = relative(timed(files, image, runtime, arguments))
        publish({"differences": differences(files), "runtimes": found}, arguments)


if __name__ == "__main__":
    main()
