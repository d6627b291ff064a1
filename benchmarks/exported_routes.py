"""Measure a ResNet-50 with random routes in one file against the dense network, in ONNX Runtime and OpenVINO.

    python benchmarks/exported_routes.py [--routes 4] [--rounds 15] [--threads 2] [--int8] [--out FILE]

Each route opens half of the inner filters, in groups of 8. The network is untrained, which does not change times. The
dense network, one route alone (a static pattern) and the file with all routes are timed in turn, at 224x224, for one
image and for 8 images that are spread over the routes. `of_macs` is the speed-up over dense in the same runtime and
precision, divided by the ratio of multiply-adds, with the gater. With one thread the time is that of the processor,
which other programs hardly disturb.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from exported_files import INSTALLED, parser, publish, spread, timed
from torch import Tensor, nn

import gatewise as gw
from gatewise.graph.measure import Latency
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


def relative(times: dict[str, Latency], macs: float) -> dict[str, Any]:
    """Return milliseconds, and speeds relative to dense."""
    found: dict[str, Any] = {}
    for name, latency in times.items():
        faster = spread(times["dense"].times(latency))
        found[name] = {"ms": 1e3 * latency.median_s, "faster": faster}
        found[name]["of_macs"] = faster[0] / (1 if name == "dense" else macs)
    return found


def main() -> None:
    flags = parser(__doc__, threads=2)
    flags.add_argument("--routes", type=int, default=4)
    flags.add_argument("--int8", action="store_true")
    arguments = flags.parse_args()
    torch.set_num_threads(arguments.threads)
    net = network()
    patterns = random_routes(net, arguments.routes)
    images = spread_images(net, patterns, 8)
    macs = net.dense_macs / float(net.executed_macs(patterns.float()).mean())
    alone = RoutedNet(net, patterns[:1]).networks[0]
    found: dict[str, Any] = {}
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
            for runtime in INSTALLED:
                found[precision][runtime] = {
                    str(size): relative(timed(files, images[:size], runtime, arguments), macs) for size in (1, 8)
                }
    work = {"dense": net.dense_macs, "gater": net.gater_macs, "dense_over_route": macs}
    publish({"macs": work, "precisions": found}, arguments)


if __name__ == "__main__":
    main()
