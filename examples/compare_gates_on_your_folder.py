"""Compare gates on a folder of your own images, from Python.

    python examples/compare_gates_on_your_folder.py FOLDER      FOLDER/train/CLASS/*.png and FOLDER/val/CLASS/*.png
    python examples/compare_gates_on_your_folder.py             writes such a folder of handwritten digits first
    python examples/compare_gates_on_your_folder.py --smoke     the same with few digits; trains for seconds

All gates are trained with the same recipe, the same images in the same order and the same initial weights. `gatewise
compare` on the command line does the same. The digits take some minutes on two cores. With a FOLDER of your own, run
the command again to resume an interrupted comparison.
"""

import sys
import tempfile
from pathlib import Path

import gatewise as gw
from gatewise.data import load_dataset
from gatewise.gates.spec import parse_gates_list

SMOKE = "--smoke" in sys.argv
FOLDERS = [argument for argument in sys.argv[1:] if argument != "--smoke"]


def write_digits(folder: Path, count: int) -> None:
    """Write at most `count` handwritten digits of each split as folder/SPLIT/CLASS/NUMBER.png."""
    digits = load_dataset("digits")
    for split, images in (("train", digits.train), ("val", digits.validation)):
        for number, label in enumerate(images.labels.tolist()[:count]):
            file = folder / split / digits.classes[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            images.picture(number).save(file)


if FOLDERS:
    folder = Path(FOLDERS[0])
else:
    folder = Path(tempfile.mkdtemp()) / "digits"
    write_digits(folder, 200 if SMOKE else 2000)

recipe = gw.Recipe(data=str(folder), model="resnet20", epochs=1 if SMOKE else 10, batch_size=64)
gates = parse_gates_list("none,se" if SMOKE else "none,se,gct,gct:mode=l1")
out = folder.with_name(f"{folder.name}_comparison")
results = gw.compare(recipe, gates, seeds=2 if SMOKE else 3, out=out)

for variant in results["variants"]:
    accuracy, latency = variant["accuracy"]["mean"], variant["latency_ms"]["1"]["median"]
    verdict = variant.get("verdict", "baseline")
    print(f"{variant['gates']:12} accuracy {accuracy:.4f}, {latency:6.2f} ms an image: {verdict}")
print(f"report: {out / 'report.html'}")
