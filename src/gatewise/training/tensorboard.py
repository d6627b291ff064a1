"""Write a run's log to TensorBoard; a failure to write does not stop the training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation


class Board:
    """Write the rows of a log for TensorBoard, if it is installed.

    If its files cannot be written, warn once and stop writing.

    Args:
        folder: where its files are written.
        epoch: drop existing data from this epoch on, which an interrupted training left.
        say: function that shows a warning.
    """

    def __init__(self, folder: Path, epoch: int, say: Callable[[str], None]) -> None:
        self._folder, self._epoch, self._say = folder, epoch, say
        self._writer: Any = None
        self._given_up = False

    def _open(self) -> None:
        try:
            tensorboard = _validation.import_optional("torch.utils.tensorboard", "TensorBoard")
        except errors.MissingExtraError:
            self._given_up = True
        else:
            self._writer = tensorboard.SummaryWriter(str(self._folder), purge_step=self._epoch)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write every number of a row at its epoch; the first row creates the file."""
        try:
            if self._writer is None and not self._given_up:
                self._open()
            if self._writer is None:
                return
            for name, value in row.items():
                if name not in {"epoch", "step"} and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()  # raises here on a full disk, instead of in the writer's thread
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the files, if any."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None

    def _give_up(self, error: OSError) -> None:
        self._writer, self._given_up = None, True
        self._say(f"warning: cannot write TensorBoard files, logging to them stops: {error.strerror or error}")
