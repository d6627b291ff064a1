"""The demo command: other commands one after the other on handwritten digits, and a page that links what they write."""

import json
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gatewise import errors
from gatewise.cli.app import app

if TYPE_CHECKING:
    from gatewise.analysis.page import Section

_SHORT = "--epochs 5 --batch-size 64"
_PAGE, _DIGIT = "index.html", "digit.png"


@dataclass(frozen=True)
class _Step:
    """A command of the story.

    Attributes:
        title: what it is about.
        text: what it answers, and what to look for.
        command: the command, with {out} for the folder of the demonstration.
        files: what it writes, in that folder, by its title on the page; pictures are shown, other files linked.
    """

    title: str
    text: str
    command: str
    files: dict[str, str] = field(default_factory=dict[str, str])


_STEPS = (
    _Step(
        "What is in the data",
        "Images by class and split, sizes, copies, leaks and broken files; nothing is trained.",
        "check --data digits --out {out}/check",
        {"pictures of each class": "check/overview.svg", "the facts": "check/check.json"},
    ),
    _Step(
        "Which gate helps",
        "Each network is trained with two seeds. Two are few: the report says how large a difference they could have "
        "missed, and how many seeds would show it.",
        f"compare --data digits --gates none,gct --seeds 2 {_SHORT} --out {{out}}/comparison",
        {
            "report": "comparison/report.html",
            "the numbers": "comparison/results.json",
            "accuracy against latency": "comparison/accuracy_latency.svg",
            "accuracy while training": "comparison/curves.svg",
        },
    ),
    _Step(
        "What the gates have learned",
        "Figures of one run with gates next to the plain network, each with what to look for.",
        "explain {out}/comparison/runs/gct/seed_0 {out}/comparison/runs/none/seed_0 --out {out}/explain.html",
        {"page": "explain.html"},
    ),
    _Step(
        "A network that computes half of its filters",
        "A small network, the gater, looks at each image and picks one of two sets of filters, its route.",
        f"train --data digits --routes 2 --budget 0.5 {_SHORT} --out {{out}}/routes --resume",
        {"metrics": "routes/metrics.json", "log": "routes/log.jsonl"},
    ),
    _Step(
        "One file for other runtimes",
        "The file has a dense network for each route and the gater that chooses; its outputs are compared with those "
        "of the trained network.",
        "export {out}/routes --form routes --images 64 --out {out}/routes.onnx",
        {"ONNX file": "routes.onnx"},
    ),
    _Step(
        "The class of an image",
        "The exported file has all that this needs, also the names of the classes.",
        f"predict {{out}}/routes.onnx {{out}}/{_DIGIT}",
        {"the image": _DIGIT},
    ),
)


@app.command
def demo(*, out: Path = Path("demo")) -> None:
    """Show the whole story on handwritten digits in two minutes: check, compare, explain, train, export and predict.

    Example: gatewise demo

    The trainings are much too short for conclusions. Run the same command again to continue an interrupted one.

    Parameters
    ----------
    out
        Folder to write; index.html links everything in it.
    """
    from gatewise.core.files import check_folder_writable, write_atomically

    begun = time.monotonic()
    check_folder_writable(out)
    _write_digit(out / _DIGIT)
    for number, step in enumerate(_STEPS, 1):
        words = [word.format(out=out) for word in shlex.split(step.command)]
        print(f"\n{number}/{len(_STEPS)} {step.title}\n$ gatewise {shlex.join(words)}", flush=True)
        try:
            app(words, print_error=False, exit_on_error=False, result_action="return_value")
        except errors.MissingExtraError as error:  # of files for other runtimes, which the last two steps are about
            print(f"left out: {error}")
            break
    write_atomically(out / _PAGE, _page(out))
    print(f"\nfinished after {time.monotonic() - begun:.0f} s; everything is linked in {(out / _PAGE).resolve()}")


def _write_digit(file: Path) -> None:
    """Write a validation image as a file to predict."""
    from PIL import Image

    from gatewise.data import load_dataset

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(load_dataset("digits").validation[0][0].numpy()).save(file)


def _page(out: Path) -> str:
    """Return the page that links everything in the folder."""
    from gatewise.analysis.page import Page

    answer = " ".join(json.loads((out / "comparison/results.json").read_text("utf-8"))["summary"])
    lead = f"Six commands on handwritten digits, with trainings of seconds. {answer}"
    return Page("gatewise demo", lead, [_section(out, step) for step in _STEPS]).render()


def _section(out: Path, step: _Step) -> "Section":
    from gatewise.analysis.page import Section

    command = f"gatewise {step.command.format(out=out)}"
    found = {title: file for title, file in step.files.items() if (out / file).exists()}
    pictures = {title: file for title, file in found.items() if file.endswith((".svg", ".png"))}
    links = {title: file for title, file in found.items() if title not in pictures}
    return Section(step.title, step.text, command=command, links=links, pictures=pictures)
