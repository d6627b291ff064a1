"""Distributed training: process start-up, collectives, and work that only the main process does."""

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

from gatewise import errors
from gatewise.core import _validation
from gatewise.core._torch_compat import TCPStore, rendezvous
from gatewise.core.files import held
from gatewise.core.reasons import reason_of

_PORT_KEY = "gatewise/port"
_EXITED_KEY = "gatewise/left"
_CONNECT_TIMEOUT_S = 2.0
_EXIT_TIMEOUT_S = 5.0


class Processes:
    """The processes of one training, as Accelerate detects them; without a launcher there is one.

    Messages between them use a gloo group apart from the one for gradients, so they never wait for a GPU.

    Attributes:
        device: the device of this process.
        rank: rank of this process, from 0; only process 0 writes files and prints.
        count: number of processes.
    """

    def __init__(self) -> None:
        accelerate = _validation.import_optional("accelerate", "training")
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_cpu = not torch.accelerator.is_available()
        if launched and not distributed.is_initialized() and (on_cpu or torch.cuda.is_available()):
            _init_process_group("gloo" if on_cpu else "nccl")
        # Without cpu=True, Accelerate treats processes without a GPU as independent single-process trainings.
        state = accelerate.PartialState(cpu=True) if launched and on_cpu else accelerate.PartialState()
        self.device: torch.device = state.device
        self.rank, self.count = int(state.process_index), int(state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; tensors must be on the CPU."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=_group())
        return values

    def on_main_process(self, call: Callable[[], object]) -> None:
        """Call a function in process 0 only; a `GatewiseError` from it is raised in all processes."""
        failure: errors.GatewiseError | None = None
        if self.is_main:
            try:
                call()
            except errors.GatewiseError as error:
                failure = error
        if (failure := self.all_gather_object(failure)[0]) is not None:
            raise failure

    @contextlib.contextmanager
    def holding_folder(self, folder: Path) -> Iterator[None]:
        """Lock a folder against other trainings; all processes raise if process 0 cannot get the lock."""
        with contextlib.ExitStack() as stack:
            self.on_main_process(lambda: stack.enter_context(held(folder)))
            yield

    def all_reduce_max(self, *numbers: float) -> list[float]:
        """Return the maximum of each number over all processes."""
        if self.count == 1:
            return list(numbers)
        largest = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_group())
        return largest.tolist()

    def share_buffers(self, module: nn.Module) -> None:
        """Broadcast process 0's buffers, such as the running statistics of BatchNorm, to all processes."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def check_same_everywhere(self, what: str, value: Any) -> None:
        """Raise `DataError` if `value`, described by `what`, differs between processes."""
        values = self.all_gather_object(value)
        if any(other != values[0] for other in values):
            raise errors.DataError(
                f"the processes do not see the same {what}: {', '.join(f'{v!r} in {i}' for i, v in enumerate(values))}."
                f" Choose an --out that all machines share."
            )

    def check_divides_batch(self, batch_size: int) -> None:
        """Raise if a batch cannot be split evenly: DDP gives the gradients of all processes the same weight."""
        if batch_size % self.count:
            raise errors.InvalidValueError(
                f"{self.count} processes cannot share a batch of {batch_size} images evenly. Choose a batch_size that "
                f"is a multiple of {self.count}, for example {max(1, batch_size // self.count) * self.count}."
            )

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Raise `TrainingError` with a one-line message if the connection to another process is lost."""
        try:
            with warnings.catch_warnings():
                # DDP warns about weights of size 1 x 1, whose strides are ambiguous.
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                yield
        except RuntimeError as error:
            if self.count == 1 or isinstance(error, errors.GatewiseError) or not _is_connection_error(error):
                raise
            raise errors.TrainingError(
                f"process {self.rank} of {self.count} lost the connection to another process "
                f"({reason_of(error, 120)}). Give the same command with --resume to continue; "
                f"torchrun --max-restarts does so automatically."
            ) from error


def _init_process_group(backend: str) -> None:
    """Initialise the process group through a store that ends with process 0.

    torchrun's own store outlives its workers. With torch 2.14, restarted workers read the addresses of their dead
    predecessors from it and waited for them until a timeout.
    """
    if TCPStore is None or rendezvous is None:
        distributed.init_process_group(backend)
        return
    shared, rank, count = next(rendezvous("env://"))
    host = os.environ["MASTER_ADDR"]
    if rank == 0:
        store = TCPStore(host, 0, count, is_master=True, wait_for_workers=False)
        shared.set(_PORT_KEY, str(store.port))
    else:
        store = _connect_to_store(shared, host, count)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
    atexit.register(_wait_for_all_to_exit, store, count)


def _wait_for_all_to_exit(store: Any, count: int) -> None:
    """Wait until all processes are about to exit: an early exit may reset connections that others still read from."""
    with contextlib.suppress(RuntimeError):  # process 0 has exited, and the store with it
        store.add(_EXITED_KEY, 1)
        until = time.monotonic() + _EXIT_TIMEOUT_S
        while store.add(_EXITED_KEY, 0) < count and time.monotonic() < until:
            time.sleep(0.02)


def _connect_to_store(shared: Any, host: str, count: int) -> Any:
    """Return process 0's store; retry, since the published port may still be that of a dead predecessor."""
    while True:
        port = int(shared.get(_PORT_KEY))  # blocks until a port is published
        try:
            # TCPStore itself would print connection errors
            socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
            return TCPStore(host, port, count, wait_for_workers=False)
        except (OSError, distributed.DistError):
            time.sleep(0.1)


@functools.cache
def _group() -> Any:
    """Return a gloo process group of all processes."""
    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def _is_connection_error(error: RuntimeError) -> bool:
    # Gloo raises a plain RuntimeError for a lost connection: only its message differs from that of other errors.
    words = ("gloo", "nccl", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)


def usable_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def of_all_processes(value: Tensor) -> Tensor:
    """Return the tensors of all processes, stacked by rank and detached: (...) -> (processes, ...)."""
    value = value.detach().contiguous()
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return value[None]
    values = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
    distributed.all_gather(values, value)
    return torch.stack(values)


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, detached.

    >>> mean_over_processes(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return of_all_processes(value).mean(0)  # sum by rank, so that the result does not depend on timing
