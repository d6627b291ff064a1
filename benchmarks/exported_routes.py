"""Measure a ResNet-50 with random routes in one file against the dense network, in ONNX Runtime and OpenVINO.

    python benchmarks/exported_routes.py [--routes 4] [--rounds 15] [--threads 2] [--int8] [--out FILE]

Each route opens half of the inner filters, in groups of 8. The network is untrained, which does not change times. The
dense network, one route alone (a static pattern) and the file with all routes are timed in turn, at 224x224, for one
image and for 8 images that are spread over the routes. `of_macs` is the speed-up over dense in the same runtime and
precision, divided by the ratio of multiply-adds, with the gater. With one thread the time is that of the processor,
which other programs hardly disturb.
"""

import argparse
import functools
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.exporting.runtimes import RUNTIMES
from gatewise.graph.measure import environment, interleaved_latency
from gatewise.inference.routed import Chooser, RoutedNet

CANDIDATES = 64  # noisy images of different contrast, of which some for each route are taken


def network() -> gw.GaterNet:
    """Return a ResNet-50 whose gates are decided by a light gater, half of them open on average."""
    torch.manual_seed(0)
    return gw.GaterNet(torchvision.models.resnet50(), sites="inner", group_size=8, image_size=(224, 224)).eval()


def random_routes(net: gw.GaterNet, count: int) -> Tensor:
    """Return routes that open half of the gates of each site, (count, gates)."""
    patterns = torch.zeros(count, net.gate_count, dtype=torch.bool)
    for site in net.sites:
        order = torch.rand(count, site.gates).argsort(1)
        patterns[:, site.first : site.first + site.gates] = order < site.gates // 2
    return patterns


@torch.no_grad()
def spread_images(net: gw.GaterNet, patterns: Tensor, batch: int) -> Tensor:
    """Centre the gater's logits on noise, and return images that are spread over the routes, interleaved."""
    images = torch.randn(CANDIDATES, 3, 224, 224) * torch.rand(CANDIDATES, 3, 1, 1) * 2
    images += torch.randn(CANDIDATES, 3, 1, 1)
    gater: Any = net.gater
    last = [layer for layer in gater.modules() if isinstance(layer, nn.Linear)][-1]
    logits = torch.cat([gater(part) for part in images.split(8)])
    last.bias -= logits.mean(0)
    route = torch.cat([Chooser(net, patterns)(part)[0] for part in images.split(8)])
    of_route = [(route == number).nonzero().flatten().tolist() for number in range(len(patterns))]
    print("images of each route:", [len(own) for own in of_route], flush=True)
    rows = [row for turn in range(batch) for own in of_route if len(own) > turn for row in [own[turn]]]
    return images[rows[:batch]]


def timed(files: dict[str, Path], images: Tensor, runtime: str, threads: int, rounds: int, macs: float) -> Any:
    """Return milliseconds and speeds relative to dense."""
    calls = {n: functools.partial(RUNTIMES[runtime].ready(file, threads), images) for n, file in files.items()}
    clock = time.process_time if threads == 1 else time.perf_counter
    times = interleaved_latency(calls, rounds=rounds, seconds_per_turn=0.1, clock=clock)
    found: dict[str, Any] = {}
    for name, latency in times.items():
        faster = times["dense"].times(latency)
        found[name] = {"ms": 1e3 * latency.median_s, "faster": [faster.median_s, faster.low_s, faster.high_s]}
        found[name]["of_macs"] = faster.median_s / (1 if name == "dense" else macs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    net = network()
    patterns = random_routes(net, arguments.routes)
    images = spread_images(net, patterns, 8)
    macs = net.dense_macs / float(net.executed_macs(patterns.float()).mean())
    alone = RoutedNet(net, patterns[:1]).networks[0]
    found: dict[str, Any] = {}
    runtimes = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32", "int8")[: 2 if arguments.int8 else 1]:
            names = ("dense", "one route alone", "routes")
            files = {name: Path(folder, f"{name}-{precision}.onnx") for name in names}
            options: dict[str, Any] = {"example": images, "int8": images if precision == "int8" else None}
            gw.export(net.backbone, files["dense"], **options)
            gw.export(alone, files["one route alone"], **options)
            written = gw.export(net, files["routes"], form="routes", routes=patterns, **options)
            print(precision, written, flush=True)
            found[precision] = {"bytes": {name: file.stat().st_size for name, file in files.items()}}
            for runtime in runtimes:
                found[precision][runtime] = {
                    str(size): timed(files, images[:size], runtime, arguments.threads, arguments.rounds, macs)
                    for size in (1, 8)
                }
    results = {
        "environment": environment(),
        "rounds": arguments.rounds,
        "clock": "processor" if arguments.threads == 1 else "wall",
        "macs": {"dense": net.dense_macs, "gater": net.gater_macs, "dense_over_route": macs},
        "precisions": found,
    }
    print(json.dumps(results, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
