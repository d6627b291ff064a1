"""A pool of worker processes that make inputs and are replaced when they hang or die."""

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from support.project import ROOT

START_S = 120.0  # for the imports, on a busy machine


def environment() -> dict[str, str]:
    """Return the environment of processes that import the package and the fuzzer."""
    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


class Worker:
    """One process, started when it is needed.

    Args:
        folder: of its inputs.
        base: of good files.
        limit_s: for one input.
        most_bytes: by which one input may make it grow.
    """

    def __init__(self, folder: Path, base: Path, limit_s: float, most_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.base, self.limit_s, self.most_bytes = folder, base, limit_s, most_bytes
        self.process: subprocess.Popen[str] | None = None
        self.replaced = -1

    def make(self, name: str, seed: str) -> dict[str, Any]:
        """Make one input; a process that hangs or dies is replaced at the next one."""
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\t{seed}\n")
        self.process.stdin.flush()
        if (found := self._answer(self.limit_s)) is not None:
            return found
        dead = self.process.poll()
        self.stop()
        kind, message = ("hang", f"no answer in {self.limit_s:g} s") if dead is None else ("died", f"exit code {dead}")
        return {
            "outcome": "failed",
            "kind": kind,
            "message": message,
            "target": name,
            "seed": seed,
            "seconds": self.limit_s,
            "grown": 0,
        }

    def _start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "support.fuzzing.worker",
            str(self.folder),
            str(self.base),
            str(self.most_bytes),
        ]
        self.process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.replaced += 1
        if self._answer(START_S) is None:
            assert self.process.stderr is not None
            self.process.kill()
            raise RuntimeError(f"a worker does not start: {self.process.stderr.read()[-2000:]}")

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if line.endswith("\n"):
            return json.loads(line)
        if ready:
            self.process.wait(10)
        return None

    def stop(self) -> None:
        """End the process."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self.process = None


def made(jobs: list[tuple[str, str]], workers: list[Worker]) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each input (target, seed), made by these workers in parallel."""
    todo: SimpleQueue[tuple[str, str]] = SimpleQueue()
    done: SimpleQueue[Any] = SimpleQueue()
    for job in jobs:
        todo.put(job)

    def serve(worker: Worker) -> None:
        try:
            while True:
                done.put(worker.make(*todo.get_nowait()))
        except Empty:
            pass
        except BaseException as error:
            done.put(error)
        finally:
            worker.stop()

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for _ in jobs:
        found = done.get()
        if isinstance(found, BaseException):
            raise found
        yield found
    for thread in threads:
        thread.join()
