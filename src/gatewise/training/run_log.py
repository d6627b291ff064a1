"""The log of a training: `log.jsonl`, one line per epoch, and the same numbers for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core.files import write_atomically
from gatewise.core.run_files import LOG, TENSORBOARD
from gatewise.training.distributed import Processes
from gatewise.training.progress import Progress
from gatewise.training.run_folder import read_log
from gatewise.training.tensorboard import Board


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
        self.file = out / LOG
        self.rows = [row for row in read_log(out) if row["epoch"] <= epoch]
        if len(self.rows) < epoch:
            raise errors.DataError(
                f"{self.file}: expected {epoch} epochs, found {len(self.rows)}. Restore the file from a copy."
            )
        self._board = Board(out / TENSORBOARD, epoch + 1, progress.say) if processes.is_main else None

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
