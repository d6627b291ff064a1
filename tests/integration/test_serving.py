"""The server of benchmarks/serving.py answers each request with the logits of its image, in batches of one route."""

import asyncio
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from support.project import ROOT

IMAGES = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BRIGHT = IMAGES.mean((1, 2, 3)) > 0


class OfBrightness(nn.Module):
    """Opens the first gate for bright images, and the second for dark ones."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


@pytest.fixture(scope="module")
def net() -> gw.GaterNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return gw.GaterNet(backbone, gater=OfBrightness(), image_size=(8, 8)).eval()


@pytest.fixture(scope="module")
def folder(net: gw.GaterNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, patterns = tmp_path_factory.mktemp("served"), torch.eye(2, dtype=torch.bool)
    gw.export(net, folder / "plain.onnx", example=IMAGES)
    gw.export(net, folder / "routes.onnx", example=IMAGES, form="routes", routes=patterns, split=True)
    return folder


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


class Client:
    """Keeps the answers that a server writes."""

    def __init__(self) -> None:
        self.answers: dict[int, Tensor] = {}

    def write(self, data: bytes) -> None:
        (number,) = struct.unpack_from("<q", data)
        assert number not in self.answers
        self.answers[number] = torch.frombuffer(bytearray(data[8:]), dtype=torch.float32)


def answered(file: Path, largest: int) -> tuple[Client, list[tuple[int, int]]]:
    """Send all images before the server begins; return the answers, and its batches."""
    module = import_module("route_server")

    async def answers() -> tuple[Client, list[tuple[int, int]]]:
        server, client = module.Server(file, largest, 1), Client()
        for number, image in enumerate(IMAGES.numpy()):
            server.arrived.put_nowait(module.Request(number, number, image, client))
        task = asyncio.create_task(server.answer())
        async with asyncio.timeout(60):
            while len(client.answers) < len(IMAGES):
                await asyncio.sleep(0.01)
        task.cancel()
        return client, server.batches

    return asyncio.run(answers())


@pytest.mark.parametrize("name", ["plain", "routes"])
def test_each_request_gets_the_logits_of_its_image(net: gw.GaterNet, folder: Path, name: str) -> None:
    client, batches = answered(folder / f"{name}.onnx", 4)
    logits = torch.stack([client.answers[number] for number in range(len(IMAGES))])
    torch.testing.assert_close(logits, net(IMAGES).detach(), rtol=1e-4, atol=1e-5)
    assert max(size for _, size in batches) == 4
    if name == "plain":
        assert batches == [(0, 4), (0, 4), (0, 2)]


def test_batches_are_of_one_route_and_the_oldest_request_comes_first(folder: Path) -> None:
    _, batches = answered(folder / "routes.onnx", 10)
    first = int(not BRIGHT[0])
    assert batches == [(first, int((BRIGHT[0] == BRIGHT).sum())), (1 - first, int((BRIGHT[0] != BRIGHT).sum()))]


def test_requests_over_a_connection_are_timed(folder: Path) -> None:
    serving = import_module("serving")
    arguments: Any = type("Arguments", (), {"largest": 4, "threads": 1})
    with serving.served(folder / "routes.onnx", arguments) as server:
        assert server["shape"] == [3, 8, 8]
        found = asyncio.run(serving.sent(server, IMAGES.numpy(), np.array([0.0, 0.0, 0.01])))
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["per_second"] > 0
