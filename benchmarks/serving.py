"""Measure throughput and latency of a server on loopback, for a plain network and for one with routes.

    python benchmarks/serving.py [RUN PLAIN] [--rates 10,20] [--seconds 20] [--largest 8] [--threads 2] [--out FILE]

RUN is a run with routes and PLAIN one without a gater; the validation images of RUN are sent. Without runs the network
is the untrained ResNet-50 of exported_routes.py, plain and with --routes 4 routes of half of its inner filters. Each is
served by benchmarks/route_server.py in a process of its own, in ONNX Runtime, in turn at each rate, --rounds times.

Requests arrive at random (a Poisson process of so many images per second), whether those before are answered or not,
so latency grows without bound where the server is too slow. It is counted from the time at which a request was due.
Without --rates, plain is first sent --burst images at once; the rates are 0.3, 0.6, 0.9 and 1.2 times what it answers
per second.
"""

import argparse
import asyncio
import json
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exported_files import parser, publish
from exported_routes import network, random_routes, spread_images
from torch import Tensor

import gatewise as gw
from gatewise.exporting import export_run
from gatewise.training.runs import Run

SHARES = (0.3, 0.6, 0.9, 1.2)  # of the throughput of plain


def exported(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], Tensor]:
    """Export both networks; return the file of each, and images to send."""
    files = {name: folder / f"{name}.onnx" for name in ("plain", "routes")}
    if arguments.runs:
        routed, plain = arguments.runs
        export_run(plain, files["plain"])
        export_run(routed, files["routes"], form="routes", split=True)
        return files, torch.cat([*Run.open(routed).first(256)])
    net = network()
    patterns = random_routes(net, arguments.routes)
    images = spread_images(net, patterns, 32)
    gw.export(net.backbone, files["plain"], example=images[:2])
    gw.export(net, files["routes"], example=images[:2], form="routes", routes=patterns, split=True)
    return files, images


@contextmanager
def served(file: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Serve a network in another process while the block runs; yield the first line that it prints."""
    options = ["--largest", str(arguments.largest), "--threads", str(arguments.threads)]
    command = [sys.executable, str(Path(__file__).with_name("route_server.py")), str(file), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())  # type: ignore[union-attr]
        finally:
            process.terminate()


async def sent(server: dict[str, Any], images: np.ndarray, due: np.ndarray) -> dict[str, float]:
    """Send an image at each time that is due, in seconds; return images per second and latencies in milliseconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server["port"])
    loop, answered = asyncio.get_running_loop(), np.zeros(len(due))
    started = loop.time() + 0.05

    async def send() -> None:
        for number, at in enumerate(due):
            await asyncio.sleep(started + at - loop.time())
            writer.write(struct.pack("<q", number) + images[number % len(images)].tobytes())
            await writer.drain()

    async def receive() -> None:
        for _ in due:
            answer = await reader.readexactly(8 + 4 * server["logits"])
            answered[struct.unpack_from("<q", answer)] = loop.time() - started

    await asyncio.gather(send(), receive())
    writer.close()
    p50, p99 = np.percentile(1e3 * (answered - due), (50, 99))
    return {"per_second": len(due) / (answered.max() - due[0]), "p50_ms": float(p50), "p99_ms": float(p99)}


def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Return the times at which requests are due."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(2, round(rate * seconds)))
    return gaps.cumsum()


def measured(files: dict[str, Path], images: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return for each rate and network the median over the rounds of each number, with the least and the largest."""
    rates = [float(text) for text in arguments.rates.split(",")] if arguments.rates else []
    if not rates:
        with served(files["plain"], arguments) as server:
            fastest = asyncio.run(sent(server, images, np.zeros(arguments.burst)))["per_second"]
        rates = [round(share * fastest, 2) for share in SHARES]
    found: dict[str, Any] = {}
    for rate in rates:
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for turn in range(arguments.rounds):
            for name, file in files.items():
                with served(file, arguments) as server:
                    asyncio.run(sent(server, images, np.zeros(2 * arguments.largest)))  # warm up
                    rows[name].append(asyncio.run(sent(server, images, arrivals(rate, arguments.seconds, turn))))
        found[str(rate)] = {name: summary(of) for name, of in rows.items()}
    return found


def summary(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    values = {name: [each[name] for each in rounds] for name in rounds[0]}
    return {name: [statistics.median(of), min(of), max(of)] for name, of in values.items()}


def show(found: dict[str, Any]) -> None:
    """Print a line for each rate and network."""
    print(f"{'arriving/s':>10} {'network':8} {'answered/s':>20} {'p50 ms':>24} {'p99 ms':>24}")
    for rate, rows in found.items():
        for name, row in rows.items():
            cells = [f"{middle:.1f} [{low:.1f}, {high:.1f}]" for middle, low, high in row.values()]
            print(f"{rate:>10} {name:8} {cells[0]:>20} {cells[1]:>24} {cells[2]:>24}")


def main() -> None:
    flags = parser(__doc__, threads=2)
    flags.set_defaults(rounds=3)
    flags.add_argument("runs", type=Path, nargs="*")
    flags.add_argument("--rates", default="")
    flags.add_argument("--burst", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=20)
    flags.add_argument("--largest", type=int, default=8)
    flags.add_argument("--routes", type=int, default=4)
    arguments = flags.parse_args()
    if len(arguments.runs) not in (0, 2):
        flags.error("give a run with routes and a plain one, or none")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        files, images = exported(arguments, Path(folder))
        found = measured(files, images.numpy(), arguments)
    publish({"largest_batch": arguments.largest, "seconds": arguments.seconds, "rates": found}, arguments, "wall")
    show(found)


if __name__ == "__main__":
    main()
