"""What the processes of one training do together: which of them writes, what all agree on, what each has counted."""

# pyright: basic

import atexit
import contextlib
import functools
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from gatewise import _validation, errors
from gatewise.files import held

_c10d: Any = distributed  # which has stores, without a word in its list of names
_STORE = "gatewise/port"
_LEFT = "gatewise/left"
_KNOCK_S = 2.0
_LEAVE_S = 5.0


class Processes:
    """The processes of one training, as Accelerate finds them; without a launcher there is one.

    They talk through gloo beside what moves gradients, so that a word between them never waits for a GPU.

    Attributes:
        rank: of this process, from 0; process 0 alone writes files and prints.
        count: how many there are.
    """

    def __init__(self) -> None:
        accelerate = _validation.import_optional("accelerate", "training")
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_cpu = not torch.accelerator.is_available()
        if launched and not distributed.is_initialized() and (on_cpu or torch.cuda.is_available()):
            _meet("gloo" if on_cpu else "nccl")
        # Without being told, Accelerate takes processes without a GPU for as many trainings of one process.
        state = accelerate.PartialState(cpu=True) if launched and on_cpu else accelerate.PartialState()
        self.device: torch.device = state.device
        self.rank, self.count = int(state.process_index), int(state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; tensors must lie in the CPU's memory."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=_group())
        return values

    def on_main_process(self, call: Callable[[], object]) -> None:
        """Let process 0 alone do something, and raise in all processes what it refuses."""
        refusal: errors.GatewiseError | None = None
        if self.is_main:
            try:
                call()
            except errors.GatewiseError as error:
                refusal = error
        if (refusal := self.all_gather_object(refusal)[0]) is not None:
            raise refusal

    @contextlib.contextmanager
    def holding_folder(self, folder: Path) -> Iterator[None]:
        """Keep other trainings out of a folder: process 0 holds it, and all refuse it where it cannot."""
        with contextlib.ExitStack() as stack:
            self.on_main_process(lambda: stack.enter_context(held(folder)))
            yield

    def all_reduce_max(self, *numbers: float) -> list[float]:
        """Return the largest of each number over all processes: what one of them wishes, all do at the same step."""
        if self.count == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=_group())
        return found.tolist()

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes process 0's buffers, such as the statistics of BatchNorm."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def check_same_everywhere(self, what: str, value: Any) -> None:
        """Refuse to go on where processes do not see the same."""
        values = self.all_gather_object(value)
        if any(other != values[0] for other in values):
            raise errors.DataError(
                f"the processes do not see the same {what}: {', '.join(f'{v!r} in {i}' for i, v in enumerate(values))}."
                f" Choose an --out that all machines share."
            )

    def check_divides_batch(self, batch_size: int) -> None:
        """Refuse a batch of which processes would get unequal parts: their gradients count the same."""
        if batch_size % self.count:
            raise errors.InvalidValueError(
                f"{self.count} processes cannot share a batch of {batch_size} images evenly. Choose a batch_size that "
                f"is a multiple of {self.count}, for example {max(1, batch_size // self.count) * self.count}."
            )

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Say in one line that another process has gone, which is no defect of this one."""
        try:
            with warnings.catch_warnings():
                # DDP means weights of size 1 x 1, whose strides may be written in two ways.
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                yield
        except RuntimeError as error:
            if self.count == 1 or isinstance(error, errors.GatewiseError) or not _is_of_connection(error):
                raise
            reason = " ".join(str(error).split())[:120]
            raise errors.TrainingError(
                f"process {self.rank} of {self.count} has lost another one ({reason}). Give the same command with "
                f"--resume to go on; torchrun --max-restarts does so by itself."
            ) from error


def _meet(backend: str) -> None:
    """Join the other processes through a store that dies with process 0.

    The store of torchrun outlives its workers. Workers that it starts again found there, with torch 2.14, where those
    before them could be reached, waited for the dead, and used up a restart or half an hour.
    """
    shared, rank, count = next(_c10d.rendezvous("env://"))
    host = os.environ["MASTER_ADDR"]
    if rank == 0:
        store = _c10d.TCPStore(host, 0, count, is_master=True, wait_for_workers=False)
        shared.set(_STORE, str(store.port))
    else:
        store = _living_store(shared, host, count)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
    atexit.register(_leave_together, store, count)


def _leave_together(store: Any, count: int) -> None:
    """Wait until all have come to their end: who goes first may reset connections from which another still reads."""
    with contextlib.suppress(RuntimeError):  # process 0 has gone, and the store with it
        store.add(_LEFT, 1)
        until = time.monotonic() + _LEAVE_S
        while store.add(_LEFT, 0) < count and time.monotonic() < until:
            time.sleep(0.02)


def _living_store(shared: Any, host: str, count: int) -> Any:
    """Return process 0's store; the port that is written down may still be that of one that has died."""
    while True:
        port = int(shared.get(_STORE))  # waits where there is none yet
        try:
            socket.create_connection((host, port), timeout=_KNOCK_S).close()  # TCPStore would print what it meets
            return _c10d.TCPStore(host, port, count, wait_for_workers=False)
        except (OSError, distributed.DistError):
            time.sleep(0.1)


@functools.cache
def _group() -> Any:
    """Return the processes as a group that talks through gloo."""
    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def _is_of_connection(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)


def of_all_processes(value: Tensor) -> Tensor:
    """Return a tensor of each process by rank, without gradients: (...) -> (processes, ...)."""
    value = value.detach().contiguous()
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return value[None]
    values = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
    distributed.all_gather(values, value)
    return torch.stack(values)


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, without gradients; of one process, its own.

    >>> mean_over_processes(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return of_all_processes(value).mean(0)  # summed in the order of the processes, not of the network's packets
