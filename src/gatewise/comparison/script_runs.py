"""Trainings by any command: a process for each choice and seed, and the score from a file that it writes.

`out/runs/LABEL/seed_N` has `output/`, which the command fills, `log.txt` with what it printed, and `command.json`,
written when it has succeeded. A command that was interrupted or failed starts again with an empty `output/`.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_json, write_json
from gatewise.training import Interrupted
from gatewise.training.signals import Interruption

_OUTPUT, _LOG, _DONE = "output", "log.txt", "command.json"
_LAST_LINES = 8
_POLL_S, _GRACE_S = 0.2, 30.0
PLACEHOLDERS = ("{gates}", "{seed}", "{out}")


@dataclass(frozen=True)
class ScriptRun:
    """One training by a command.

    Attributes:
        command: the command, with {gates}, {seed} and {out}; it is split into words as a shell does, and run without
            one.
        gate: the label that replaces {gates}.
        seed: the number that replaces {seed}.
    """

    command: str
    gate: str
    seed: int

    def words(self, folder: Path) -> list[str]:
        """Return the words of the command for a run folder."""
        values = (self.gate, str(self.seed), str((folder / _OUTPUT).absolute()))
        words = shlex.split(self.command)
        for placeholder, value in zip(PLACEHOLDERS, values, strict=True):
            words = [word.replace(placeholder, value) for word in words]
        return words

    def is_finished(self, folder: Path) -> bool:
        """Return whether the command has succeeded in a run folder.

        Raises:
            InvalidValueError: another command has succeeded there.
        """
        if not (folder / _DONE).exists():
            return False
        if (there := read_json(folder / _DONE)) != self._record():
            raise errors.InvalidValueError(
                f"{folder} contains a run of another command: {there}. Choose another --out."
            )
        return True

    def _record(self) -> dict[str, str | int]:
        return {"command": self.command, "gates": self.gate, "seed": self.seed}

    def train(self, folder: Path) -> None:
        """Run the command, unless it has succeeded before.

        Raises:
            TrainingError: the command cannot be started, or fails; the message has its last lines.
            UnsavedError: a file cannot be written.
            Interrupted: a signal was received; the command was stopped.
        """
        if self.is_finished(folder):
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / _LOG).open("ab") as log:
                _hold(log.fileno(), folder)
                log.truncate(0)
                shutil.rmtree(folder / _OUTPUT, ignore_errors=True)
                (folder / _OUTPUT).mkdir()
                code = self._run(folder, log.fileno())
        except OSError as error:
            raise errors.UnsavedError(str(_validation.cannot_write(folder, error))) from error
        if code:
            printed = (folder / _LOG).read_text("utf-8", "replace").splitlines()
            last = " / ".join([line.strip() for line in printed if line.strip()][-_LAST_LINES:])
            raise errors.TrainingError(
                f"the command ended with exit code {code}: {last or 'it printed nothing'} ({folder / _LOG})"
            )
        write_json(folder / _DONE, self._record())

    def _run(self, folder: Path, log: int) -> int:
        """Run the command in a process group of its own, which is stopped by a signal, and return its exit code."""
        words = self.words(folder)
        with Interruption() as interruption:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            except (OSError, ValueError) as error:
                raise errors.TrainingError(f"the command cannot be started: {words[0]}: {error}") from None
            try:
                while process.poll() is None and interruption.signal is None:
                    time.sleep(_POLL_S)
            finally:  # also if a cluster cancels the task
                if process.returncode is None:
                    _stop(process)
        if interruption.signal is not None:
            stopped = f"stopped in {self.gate}, seed {self.seed}"
            raise Interrupted(stopped, interruption.signal, "run the same command again")
        return process.wait()


def _hold(log: int, folder: Path) -> None:
    """Lock an open log, which the command inherits: it holds the lock for as long as it runs, without us too.

    Raises:
        TrainingError: a command that was started before still runs.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise errors.TrainingError(
            f"an earlier start of the command still runs in {folder}. Stop it, then run the same command again."
        ) from None
    except OSError:  # a file system without locks
        return


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and those that it has started: ask them first."""
    if not hasattr(os, "killpg"):  # Windows: the process alone
        process.kill()
        process.wait()
        return
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_GRACE_S)
    except ProcessLookupError:
        return
    except BaseException as error:  # too late, or a second signal
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def check_command(command: str, labels: list[str]) -> None:
    """Raise `InvalidValueError` if a command cannot be split, or all its trainings would be the same."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise errors.InvalidValueError(f"--command {command!r} cannot be split into words: {error}.") from None
    missing = [each for each in PLACEHOLDERS if not any(each in word for word in words)]
    if len(labels) == 1 and "{gates}" in missing:
        missing.remove("{gates}")
    if missing:
        raise errors.InvalidValueError(
            f"--command has no {' and no '.join(missing)}; expected a command such as 'python train.py --model "
            f"{{gates}} --seed {{seed}} --output {{out}}'."
        )


def output_of(folder: Path) -> Path:
    """Return the folder that a command fills."""
    return folder / _OUTPUT
