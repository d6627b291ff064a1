"""TensorBoard's curves of a run: good to have, and no reason to stop a training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gatewise import _validation, errors


class Board:
    """Writes the rows of a log for TensorBoard, if that is installed.

    Where its files cannot be written, that is said once, and there are no more curves.

    Args:
        folder: of its files.
        epoch: from which earlier curves, of a training that was killed, are dropped.
        say: is told what is wrong.
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
        """Draw every number of a row over its epoch; the first makes the file."""
        try:
            if self._writer is None and not self._given_up:
                self._open()
            if self._writer is None:
                return
            for name, value in row.items():
                if name not in {"epoch", "step"} and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()  # so that a full disk is met here and not in the writer's thread
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """End the curves; safe to call at any time."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None

    def _give_up(self, error: OSError) -> None:
        self._writer, self._given_up = None, True
        self._say(f"warning: TensorBoard's curves end here: {error.strerror or error}")
