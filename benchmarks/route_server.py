"""Answer requests on loopback from a queue, in batches: in the order of arrival, or route by route.

    python benchmarks/route_server.py FILE.onnx [--largest 8] [--threads 2]

FILE.onnx is an exported network, or the name that was given to `gatewise export --form routes --split --out FILE.onnx`.
Needs onnxruntime and numpy only. The first line of output has the port, the shape of an image and the number of logits
as JSON. A request is a number (int64) and an image (float32, normalised); its answer the same number and the logits
(float32). With routes, images that arrive are given to the queue of their route, and the next batch is of the route
whose first image has waited longest.
"""

import argparse
import asyncio
import itertools
import json
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime


@dataclass
class Request:
    """An image to classify: `order` is its place among all that arrived, `number` that of its client."""

    order: int
    number: int
    image: np.ndarray
    client: asyncio.StreamWriter

    def answer(self, logits: np.ndarray) -> None:
        self.client.write(struct.pack("<q", self.number) + logits.astype("<f4").tobytes())


def session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that wait actively for the next batch take the processor from the sessions of other routes
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class Server:
    """Networks that run in turn, and the requests that wait for each.

    Args:
        file: an exported network; or FILE.onnx if there are FILE.chooser.onnx, FILE.route0.onnx, FILE.route1.onnx, ...
        largest: largest batch.
        threads: number of threads of a network.
    """

    def __init__(self, file: Path, largest: int, threads: int) -> None:
        chooser = file.with_suffix(".chooser.onnx")
        self.chooser = session(chooser, threads) if chooser.exists() else None
        routes = (file.with_suffix(f".route{number}.onnx") for number in itertools.count())
        files = list(itertools.takewhile(Path.exists, routes)) if self.chooser else [file]
        self.networks = [session(each, threads) for each in files]
        self.shape = tuple(self.networks[0].get_inputs()[0].shape[1:])
        self.logits = self.networks[0].get_outputs()[0].shape[1]
        self.largest, self.orders = largest, itertools.count()
        self.arrived: asyncio.Queue[Request] = asyncio.Queue()
        self.waiting: list[deque[Request]] = [deque() for _ in self.networks]
        self.batches: list[tuple[int, int]] = []  # route and number of images of each batch that was answered

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Put the requests of a client into the queue until it closes the connection."""
        size = 8 + 4 * int(np.prod(self.shape))
        try:
            while True:
                data = await reader.readexactly(size)
                image = np.frombuffer(data, "<f4", offset=8).reshape(self.shape)
                await self.arrived.put(Request(next(self.orders), *struct.unpack_from("<q", data), image, writer))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    async def answer(self) -> None:
        """Answer batch after batch, for ever."""
        while True:
            new = [] if any(self.waiting) else [await self.arrived.get()]
            while len(new) < self.largest and not self.arrived.empty():
                new.append(self.arrived.get_nowait())
            for request, route in zip(new, await self.routes(new), strict=True):
                self.waiting[route].append(request)
            oldest = [queue[0].order if queue else float("inf") for queue in self.waiting]
            route = oldest.index(min(oldest))
            queue = self.waiting[route]
            batch = [queue.popleft() for _ in range(min(self.largest, len(queue)))]
            logits = await run(self.networks[route], batch)
            self.batches.append((route, len(batch)))
            for request, row in zip(batch, logits, strict=True):
                request.answer(row)

    async def routes(self, requests: list[Request]) -> list[int]:
        """Return the index of the network that each image takes."""
        if self.chooser is None or not requests:
            return [0] * len(requests)
        return (await run(self.chooser, requests)).tolist()

    async def listen(self) -> None:
        """Print the port, and answer until the process ends."""
        server = await asyncio.start_server(self.receive, "127.0.0.1", 0, limit=2**24)
        port = server.sockets[0].getsockname()[1]
        print(json.dumps({"port": port, "shape": self.shape, "logits": self.logits}), flush=True)
        await self.answer()


async def run(network: onnxruntime.InferenceSession, requests: list[Request]) -> np.ndarray:
    """Return the first output of a network for a batch; meanwhile further requests arrive."""
    images = np.stack([request.image for request in requests])
    return (await asyncio.to_thread(network.run, None, {"image": images}))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--largest", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    asyncio.run(Server(arguments.file, arguments.largest, arguments.threads).listen())


if __name__ == "__main__":
    main()
