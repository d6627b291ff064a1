"""Measure the cost of fused gates: gct alone, gates in a ResNet-50 against other implementations, and memory.

    python benchmarks/fused.py [--tables alone,network,memory] [--gates gct,se,gc] [--rounds 11] [--quick] [--out FILE]

All entries of a table are timed in turn in one run. The result is the ratio to the baseline of each round, as median
and quartiles. "official" is the formula of the released code in plain PyTorch. "copies" is a gate that only copies
its map. `--quick` uses tiny sizes, to check that the script works; its times have no meaning.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.graph.measure import Latency, environment, interleaved_latency

SHAPES = ((32, 256, 56, 56), (32, 64, 56, 56), (128, 16, 32, 32))


class OfficialGCT(gw.Gate):
    """Compute gct in l2 mode with the formula, operation by operation."""

    def __init__(self, channels: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1, device=device, dtype=dtype))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        embedding = (x.pow(2).sum((2, 3), keepdim=True) + 1e-5).pow(0.5) * self.alpha
        norm = self.gamma / (embedding.pow(2).mean(1, keepdim=True) + 1e-5).pow(0.5)
        return x * (1 + torch.tanh(embedding * norm + self.beta))


class Copy(gw.Gate):
    """Copy the map: the minimum cost of a gate that writes a new map."""

    def __init__(self, channels: int, *, device: Any = None, dtype: Any = None) -> None:  # noqa: ARG002
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def ratios(latencies: dict[str, Latency], baseline: str) -> dict[str, dict[str, float]]:
    rows = {}
    for name, latency in latencies.items():
        ratio = latency.times(latencies[baseline])
        rows[name] = {
            "ratio": ratio.median_s,
            "ratio_low": ratio.low_s,
            "ratio_high": ratio.high_s,
            "median_ms": 1e3 * latency.median_s,
        }
    return rows


def alone(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Time forward and backward of gct against `clone` and `add`, which copy the bytes once in each direction."""
    x, grad_output = torch.randn(shape, requires_grad=True), torch.randn(shape)
    plain = x.detach()

    def forward_backward(gate: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def call() -> None:
            x.grad = None
            gate(x).backward(grad_output)

        return call

    channels = shape[1]
    gates: dict[str, Any] = {
        "official": OfficialGCT(channels),
        "official, compiled": torch.compile(OfficialGCT(channels), fullgraph=True),
        "definition": gw.make_gate("gct", channels, backend="reference"),
        "ours": gw.make_gate("gct", channels, backend="fused"),
        "ours, compiled": torch.compile(gw.make_gate("gct", channels), fullgraph=True),
    }
    calls: dict[str, Callable[[], Any]] = {"clone + add": lambda: (plain.clone(), plain + grad_output)}
    calls |= {name: forward_backward(gate) for name, gate in gates.items()}
    return ratios(interleaved_latency(calls, rounds=rounds, seconds_per_turn=0.1), "clone + add")


def networks(kind: str, model: str) -> dict[str, nn.Module]:
    """Return a timm network without gates, with the usual gate and with ours, with the same weights."""

    def made(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(model, **options)

    def with_layer(layer: Any) -> nn.Module:
        return made(block_args={"attn_layer": layer})

    if kind == "gct":
        copies, official, ours = made(), made(), made()
        gw.insert_gates(copies, Copy, place="before_conv")
        gw.insert_gates(official, OfficialGCT, place="before_conv")
        gw.insert_gates(ours, "gct")
        return {"plain": made(), "copies": copies, "official": official, "ours": ours}
    if kind == "se":
        ours = functools.partial(gw.SqueezeExcite, rd_divisor=8)
        return {"plain": made(), "timm se": with_layer("se"), "ours se": with_layer(ours)}
    add = functools.partial(gw.GlobalContext, rd_ratio=1 / 8)
    scale = functools.partial(gw.GlobalContext, rd_ratio=1 / 8, fusion="multiply")
    return {
        "plain": made(),
        "timm gca (add)": with_layer("gca"),
        "ours gc (add)": with_layer(add),
        "timm gc (multiply)": with_layer("gc"),
        "ours gc (multiply)": with_layer(scale),
    }


def in_a_network(kind: str, model: str, size: int, batch: int, rounds: int, *, train: bool) -> dict[str, Any]:
    """Time a training step, or inference with and without optimisation, against the plain network."""
    nets = networks(kind, model)
    image = torch.randn(batch, 3, size, size)

    def infer(net: nn.Module) -> Callable[[], Any]:
        def call() -> None:
            with torch.inference_mode():
                net(image)

        return call

    def step(net: nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)

        def call() -> None:
            optimizer.zero_grad()
            net(image).sum().backward()
            optimizer.step()

        return call

    if train:
        calls = {name: step(net.train()) for name, net in nets.items()}
    else:
        calls = {name: infer(net.eval()) for name, net in nets.items()}
        again = networks(kind, model)
        optimised = {f"{name}, optimised": net for name, net in again.items() if name.startswith(("plain", "ours"))}
        calls |= {name: infer(gw.optimize_for_inference(net.eval(), image)) for name, net in optimised.items()}
    return ratios(interleaved_latency(calls, rounds=rounds, seconds_per_turn=0.3), "plain")


def saved_bytes(net: nn.Module, image: Tensor) -> int:
    """Return the bytes of all tensors saved for the backward pass, without parameters."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers(), image]}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = net(image)
    del output
    return sum(kept.values())


def memory_of(kind: str, name: str, model: str, size: int, batch: int) -> dict[str, int]:
    """Return the memory of one training step; run it in a new process."""
    net = networks(kind, model)[name].train()
    image = torch.randn(batch, 3, size, size)
    net(image[:2]).sum().backward()  # loads and compiles what is needed once
    net.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; getrusage would include the parent's
    before = memory_status("VmRSS")
    net(image).sum().backward()
    return {"step_peak_kib": memory_status("VmHWM") - before, "saved_bytes": saved_bytes(net, image)}


def memory_status(key: str) -> int:
    """Return an entry of /proc/self/status in KiB. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def memory(kind: str, model: str, size: int, batch: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in networks(kind, model):
        command = [sys.executable, __file__, "--memory-of", json.dumps([kind, name, model, size, batch])]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows[name] = json.loads(answer.splitlines()[-1])
    plain = rows["plain"]
    for row in rows.values():
        row |= {"saved_ratio": row["saved_bytes"] / plain["saved_bytes"]}
        row |= {"peak_ratio": row["step_peak_kib"] / max(1, plain["step_peak_kib"])}
    return rows


def show(title: str, table: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, row in table.items():
        if "ratio" in row:
            spread = f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
            print(f"  {name:28s} {row['ratio']:.2f} x {spread}  {row['median_ms']:.2f} ms", flush=True)
        else:
            saved, peak = row["saved_bytes"] / 2**20, row["step_peak_kib"] / 2**10
            print(f"  {name:28s} saved {saved:.0f} MiB ({row['saved_ratio']:.2f} x), peak {peak:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", default="alone,network,memory")
    parser.add_argument("--gates", default="gct,se,gc", help="gates of the network and memory tables")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory_of(*options.memory_of)))
        return
    out = options.out or Path(__file__).parent / "results" / "fused-cpu.json"
    rounds = 2 if options.quick else options.rounds
    shapes = ((2, 8, 9, 7),) if options.quick else SHAPES
    model, size, batch = ("resnet26", 64, 2) if options.quick else ("resnet50", 224, 8)
    tables: dict[str, Any] = json.loads(out.read_text())["tables"] if out.exists() else {}

    def add(title: str, table: dict[str, Any]) -> None:
        tables[title] = table
        show(title, table)
        if not options.quick or options.out:
            write_json(out, {"environment": environment("cpu"), "rounds": rounds, "tables": tables})

    wanted = options.tables.split(",")
    for shape in shapes if "alone" in wanted else ():
        add(f"gct, forward + backward, {shape}, float32", alone(shape, rounds))
    for kind in options.gates.split(",") if "network" in wanted else ():
        for images, train in ((1, False), (batch, False), (batch, True)):
            title = f"{model} with {kind}, {'train' if train else 'infer'} {images}"
            add(title, in_a_network(kind, model, size, images, rounds, train=train))
    for kind in options.gates.split(",") if "memory" in wanted else ():
        add(f"{model} with {kind}, memory of a training step of {batch}", memory(kind, model, size, batch))


if __name__ == "__main__":
    main()
