"""See what the gates of a trained network learned: one number for each gate, and one HTML page.

    python examples/explain_what_gates_learned.py [--smoke] [PAGE.html]

Trains a ResNet-20 with gct on handwritten digits, tells how many channels each gate leaves as they were (over the
validation images), and writes a page with the figures. About half a minute; --smoke takes seconds.
"""

import sys
import tempfile
from pathlib import Path

import torch

import gatewise as gw
from gatewise.analysis.explanation import explain
from gatewise.data import Batches, load_dataset

SMOKE = "--smoke" in sys.argv
PAGES = [argument for argument in sys.argv[1:] if argument != "--smoke"]

run = Path(tempfile.mkdtemp()) / "gct"
gw.train(gw.Recipe(data="digits", model="resnet20", gate="gct", epochs=1 if SMOKE else 10), run)

# The numbers: a network of your own with gates in it works just so.
model, config = gw.load_model(run)
dataset = load_dataset("digits")
images = Batches(dataset.validation, 100, torch.tensor(config["mean"]), torch.tensor(config["std"]))
stats = gw.analysis.GateStats(model, classes=len(dataset.classes))
with torch.no_grad(), gw.analysis.GateRecorder(model) as recorder:
    for batch, labels in images.evaluation():
        model(batch)
        stats.update(recorder.take(), labels)

summaries = stats.summaries().values()
for gate in summaries:
    print(
        f"{gate.path:30} {gate.near_identity:7.1%} near the identity, {gate.between_images:6.1%} depends on the image"
    )
mean = sum(gate.near_identity for gate in summaries) / len(summaries)
print(f"mean of {len(summaries)} gates: {mean:.1%} near the identity")

# The page, for this run or for several beside each other.
page = explain([run], PAGES[0] if PAGES else run / "gates.html")
print(f"page: {page}")
