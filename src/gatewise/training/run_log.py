"""The log of a training: `log.jsonl`, one line per epoch, and the same numbers for TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core.files import without_nan, write_atomically
from gatewise.core.run_files import LOG, TENSORBOARD
from gatewise.training.distributed import Processes
from gatewise.training.progress import Progress
from gatewise.training.run_folder import read_log
from gatewise.training.tensorboard import Board
from gatewise.training.trackers import DEFAULT, Trackers


class RunLog:
    """The rows of a log; only the main process writes them.

    Args:
        out: the run folder.
        epoch: number of complete epochs; rows of later ones, which an interrupted training left, are dropped.
        progress: where to show warnings.
        processes: the processes of the training.
        track: names of trackers.
        title: name of the run for trackers.
        config: the recipe, for trackers.

    Raises:
        DataError: rows are missing or damaged.
    """

    def __init__(
        self,
        out: Path,
        epoch: int,
        progress: Progress,
        processes: Processes,
        track: Sequence[str] = DEFAULT,
        title: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.file = out / LOG
        self.rows = [row for row in read_log(out) if row["epoch"] <= epoch]
        if len(self.rows) < epoch:
            raise errors.DataError(
                f"{self.file}: expected {epoch} epochs, found {len(self.rows)}. Restore the file from a copy."
            )
        self._is_main = processes.is_main
        self._boards: list[Board | Trackers] = []
        if self._is_main:
            self._boards.append(Trackers(track, out, title, config or {}, progress.say))
            if TENSORBOARD in track:
                self._boards.append(Board(out / TENSORBOARD, epoch + 1, progress.say))

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of an epoch; a number that is not finite, such as a score that is not defined, is null."""
        row = without_nan(row)
        self.rows.append(row)
        if self._is_main:
            write_atomically(self.file, "".join(json.dumps(row) + "\n" for row in self.rows))
        for board in self._boards:
            board.add(row)

    def close(self) -> None:
        """Close TensorBoard's writer and the trackers."""
        for board in self._boards:
            board.close()
