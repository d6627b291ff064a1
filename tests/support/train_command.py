"""`gatewise train` in a separate process."""

import re
import subprocess
import sys
from pathlib import Path

FLAGS = ["--data", "digits", "--model", "resnet20", "--gate", "gct", "--precision", "fp32"]


def start(out: Path, *more: str, epochs: int = 4) -> subprocess.Popen[str]:
    flags = [*FLAGS, "--epochs", str(epochs), *more, "--out", str(out)]
    command = [sys.executable, "-m", "gatewise", "train", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_an_epoch(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    while not re.search(r"epoch \d+/", process.stderr.readline()):
        assert process.poll() is None
