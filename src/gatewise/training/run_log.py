"""The log of a training: `log.jsonl`, one line per epoch, and the same numbers for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core.files import read_json_lines, write_atomically
from gatewise.training.distributed import Processes
from gatewise.training.progress import Progress
from gatewise.training.tensorboard import Board

_NUMBERS = ("epoch", "train_accuracy", "images_per_second")  # what a resumed training reads from the log


class RunLog:
    """The rows of a log; only the main process writes them.

    Args:
        out: the run folder.
        epoch: number of complete epochs; rows of later ones, which an interrupted training left, are dropped.
        progress: where to show warnings.
        processes: the processes of the training.

    Raises:
        DataError: rows are missing or damaged.
    """

    def __init__(self, out: Path, epoch: int, progress: Progress, processes: Processes) -> None:
        self.file = out / "log.jsonl"
        rows: list[Any] = read_json_lines(self.file) if self.file.exists() else []
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), int | float) for key in _NUMBERS):
                raise errors.DataError(
                    f"{self.file}, line {number}: expected numbers for {', '.join(_NUMBERS)}. "
                    f"Restore the file from a copy."
                )
        self.rows: list[dict[str, Any]] = [row for row in rows if row["epoch"] <= epoch]
        if len(self.rows) < epoch:
            raise errors.DataError(
                f"{self.file}: expected {epoch} epochs, found {len(self.rows)}. Restore the file from a copy."
            )
        self._board = Board(out / "tensorboard", epoch + 1, progress.say) if processes.is_main else None

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of an epoch."""
        self.rows.append(row)
        if self._board is not None:
            write_atomically(self.file, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._board.add(row)

    def close(self) -> None:
        """Close the TensorBoard writer."""
        if self._board is not None:
            self._board.close()
