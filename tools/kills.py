"""Kill trainings and comparisons at any moment, resume each time, and check that nothing was lost.

    PYTHONPATH=tests python tools/kills.py [--kills 40] [--signals 16] [--seed 0] [--json FILE]

Half of the kills are for `gatewise train`, half for `gatewise compare`. After each, every file that bears its final
name is opened; in the end all that was written must be, bit for bit and but for times, what an uninterrupted process
wrote. Ends with exit code 1 if any file was corrupt, lost or different.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

os.environ["OMP_NUM_THREADS"] = "1"

from gatewise.cli import run
from support.whole_files import corrupt_files, leftovers, outcome

COMMON = ["--data", "digits", "--model", "resnet20", "--precision", "fp32", "--workers", "0"]
COMMANDS = {
    "train": ["train", *COMMON, "--gate", "gct", "--epochs", "5", "--resume"],
    "compare": ["compare", *COMMON, "--gates", "none,gct", "--seeds", "2", "--epochs", "2"],
}
EPOCHS = {"train": 5, "compare": 8}
WAYS = ("random moment", "during a save", "in a slow checkpoint", "while the results are written")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
COLD = 8  # of so many processes one is started from nothing, seconds before it has loaded its packages


@dataclass
class Record:
    """The kills and signals that were sent, and their outcomes."""

    kills: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    rounds: Counter[str] = field(default_factory=Counter)
    epochs_again: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        killed = [kill for kill in self.kills if kill["signal"] == "SIGKILL"]
        return {
            "kills": len(killed),
            "signals": len(self.kills) - len(killed),
            "by_command": dict(Counter(f"{kill['command']}, {kill['signal']}" for kill in self.kills)),
            "by_way": dict(Counter(kill["way"] for kill in killed)),
            "by_phase": dict(Counter(kill["phase"] for kill in self.kills)),
            "by_start": dict(Counter(kill["started"] for kill in self.kills)),
            "files_opened": sum(kill["files"] for kill in self.kills),
            "corrupt_files": sum(kill["corrupt"] for kill in self.kills),
            "runs_compared_bit_for_bit": dict(self.rounds),
            "epochs_trained_again": dict(self.epochs_again),
            "lost": self.failures or "nothing",
            "each": self.kills,
        }


class Process:
    """A running command and the lines that it has written to standard error.

    Args:
        command: train or compare.
        out: its folder.
        slow_disk: let every flush to the disk take a third of a second.
        cold: start a new Python process; otherwise fork this process, which has the packages loaded.
    """

    def __init__(self, command: str, out: Path, *, slow_disk: bool = False, cold: bool = False) -> None:
        arguments = [*COMMANDS[command], "--out", str(out)]
        reading, writing = os.pipe()
        if cold:
            started = [sys.executable, "-m", "gatewise", *arguments]
            with open(os.devnull, "w") as nothing:  # noqa: PTH123
                self.pid = subprocess.Popen(started, stdout=nothing, stderr=writing).pid
        else:
            self.pid = os.fork()
            if self.pid == 0:
                _become(arguments, writing, slow_disk=slow_disk)
        os.close(writing)
        self.code: int | None = None
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()

    def _read(self, reading: int) -> None:
        with os.fdopen(reading) as printed:
            for line in printed:
                self.lines.append(line.rstrip())

    @property
    def runs(self) -> bool:
        """Whether the command is still running."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    @property
    def epochs(self) -> int:
        """Return the number of epochs it has reported."""
        return sum(": epoch " in line for line in self.lines)

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait until the process ends and return its exit code."""
        while self.runs:
            time.sleep(0.01)
        self._reader.join()
        assert self.code is not None
        return self.code


def _become(arguments: list[str], printed: int, *, slow_disk: bool) -> NoReturn:
    """Turn a fork of this process into the command, and end it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    os.dup2(printed, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if slow_disk:
        flush = os.fsync
        os.fsync = lambda file: (time.sleep(0.3), flush(file))[1]  # type: ignore[assignment]
    code = 1
    try:
        code = run(arguments)
    finally:
        sys.stderr.flush()
        os._exit(code)


def names_in(out: Path) -> list[str]:
    """Return the names of all files and folders of a folder that another process is changing."""
    return [name for _, folders, files in os.walk(out) for name in (*folders, *files)]


def being_written(out: Path, pid: int) -> Path | None:
    """Return a file or folder that a process is writing, or was writing when it was killed, or None."""
    for folder, folders, files in os.walk(out):
        for name in (*folders, *files):
            if name.endswith(f".{pid}.part"):
                return Path(folder, name)
    return None


def wait(process: Process, out: Path, way: str, epochs: int, rng: random.Random) -> None:
    """Wait for the moment to kill the process; it may end before."""
    if way == "random moment":
        after, delay = rng.randrange(epochs), rng.uniform(0, 1.5)
        delay += rng.uniform(0, 6) if after == 0 else 0
        while process.runs and process.epochs < after:
            time.sleep(0.01)
        end = time.monotonic() + delay
        while process.runs and time.monotonic() < end:
            time.sleep(0.005)
    elif way == "while the results are written":
        before = names_in(out).count("model.safetensors")
        while process.runs and sum("model.safetensors" in name for name in names_in(out)) <= before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
    else:
        after = rng.randrange(2 if "checkpoint" in way else 4)  # saves that are not interrupted
        seen: set[Path] = set()
        while process.runs and len(seen) <= after:
            found = being_written(out, process.pid)
            if found is not None and (found.name.startswith(".step") or "checkpoint" not in way):
                seen.add(found)
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.5 if "slow" in way else 0.004))


def phase(process: Process, out: Path) -> str:
    """Return what a process was doing when it was killed."""
    part = being_written(out, process.pid)
    if part is not None:
        return "writing a checkpoint" if part.name.startswith(".step") else "writing another file"
    if "recipe.yaml" not in names_in(out):
        return "starting"
    if any("measuring latency" in line for line in process.lines):
        return "measuring latency"
    return "before its first epoch ended" if process.epochs == 0 else "training"


def newest_step(out: Path) -> int:
    """Return the step of the newest checkpoint, or 0."""
    return max((int(name[5:]) for name in names_in(out) if name.startswith("step_")), default=0)


def disturb(
    command: str, out: Path, number: signal.Signals, way: str, rng: random.Random, *, cold: bool
) -> tuple[dict[str, Any] | None, Process, list[str]]:
    """Start a command and send it a signal; return the record, None if it ended before, and complaints."""
    process = Process(command, out, slow_disk="slow" in way, cold=cold)
    wait(process, out, way, EPOCHS[command], rng)
    if not process.runs:
        return None, process, [] if process.end() == 0 else [f"{command} failed: {process.lines[-1:]}"]
    before = phase(process, out)
    process.send(number)
    code = process.end()
    if code == 0:  # it was at its end
        return None, process, []
    after = phase(process, out) if number == signal.SIGKILL else before
    complaints = corrupt_files(out) if out.exists() else []
    files = sum(path.is_file() for path in out.rglob("*"))
    record = {
        "command": command,
        "signal": number.name,
        "way": way,
        "started": "from nothing" if cold else "with its packages loaded",
        "phase": after,
        "newest_step": newest_step(out),
        "files": files,
        "corrupt": len(complaints),
    }
    if number != signal.SIGKILL:
        last = process.lines[-1] if process.lines else ""
        record |= {"exit_code": code, "said": last.replace(str(out), "OUT")}
        if before != "starting" and (
            code != CODES[number] or "same command" not in last or not last.startswith("gatewise: ")
        ):
            complaints.append(f"{command} after {number.name}: exit code {code}, {last!r}")
    return record, process, [f"{command} after {number.name} ({after}): {complaint}" for complaint in complaints]


def finish(command: str, out: Path) -> Process:
    """Run a command to its end."""
    process = Process(command, out)
    if process.end() != 0:
        raise RuntimeError(f"{command} failed: {process.lines[-3:]}")
    return process


def compare_with_uninterrupted(command: str, out: Path, expected: dict[str, Any]) -> list[str]:
    """Return what differs."""
    found = outcome(out)
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    complaints = [f"{command}: {name} differs from that of the uninterrupted process" for name in names]
    return [*complaints, *(f"{command}: {name} was not removed" for name in leftovers(out))]


def series(
    command: str, plan: list[tuple[signal.Signals, str]], root: Path, rng: random.Random, record: Record
) -> None:
    """Interrupt one command as planned and resume it each time; use a new folder whenever it has finished."""
    finish(command, root / f"{command}-uninterrupted")
    expected = outcome(root / f"{command}-uninterrupted")
    left, number, epochs, kills = list(plan), 0, 0, 0
    while left:
        out = root / f"{command}-{number}"
        kill, process, complaints = disturb(command, out, *left[0], rng, cold=len(left) % COLD == 1)
        record.failures += complaints
        epochs += process.epochs
        if kill is not None:
            left.pop(0)
            kills += 1
            record.kills.append(kill)
            print(json.dumps(kill), flush=True)
        if kill is None or not left:
            epochs += finish(command, out).epochs
            record.failures += compare_with_uninterrupted(command, out, expected)
            record.rounds[command] += 1
            record.epochs_again[command] += (again := epochs - EPOCHS[command])
            if again > kills:
                record.failures.append(f"{command} {number}: {again} epochs trained again after {kills} kills")
            number, epochs, kills = number + 1, 0, 0


def plan(kills: int, signals: int, rng: random.Random) -> list[tuple[signal.Signals, str]]:
    """Return the planned kills and signals of a command, in order."""
    found = [(signal.SIGKILL, WAYS[index % len(WAYS)]) for index in range(kills)]
    found += [((signal.SIGTERM, signal.SIGINT)[index % 2], "random moment") for index in range(signals)]
    rng.shuffle(found)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Kill, compare, write the record, and return the exit code."""
    parser = argparse.ArgumentParser(description="Kill trainings and comparisons, go on, and see that nothing is lost.")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--signals", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commands", default="train,compare")
    options = parser.parse_args(arguments)
    record, commands = Record(), options.commands.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for index, command in enumerate(commands):
            rng = random.Random(f"{options.seed} {command}")
            shares = [(count + index) // len(commands) for count in (options.kills, options.signals)]
            series(command, plan(*shares, rng), Path(folder), rng, record)
    summary = {"command": f"PYTHONPATH=tests python tools/kills.py --kills {options.kills} --signals {options.signals}"}
    summary |= record.summary()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: value for key, value in summary.items() if key != "each"}, indent=2))
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
