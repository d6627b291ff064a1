"""Show what the gates of a trained network learned: numbers for each gate, and one HTML page.

    python examples/explain_what_gates_learned.py [--smoke] [PAGE.html]

The script trains a ResNet-20 with gct on handwritten digits. For each gate it prints the share of channels that the
gate does not change, over the validation images. It writes a page with the figures. This takes about half a minute;
--smoke takes seconds.
"""

import sys
import tempfile
from pathlib import Path

import torch

import gatewise as gw
from gatewise.analysis.explanation import explain_runs
from gatewise.data import Batches, load_dataset

SMOKE = "--smoke" in sys.argv
PAGES = [argument for argument in sys.argv[1:] if argument != "--smoke"]

run = Path(tempfile.mkdtemp()) / "gct"
gw.train(gw.Recipe(data="digits", model="resnet20", gate="gct", epochs=1 if SMOKE else 10), run)

# The numbers. The same code works for your own network with gates.
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

# The page, for one run or for several side by side.
page = explain_runs([run], PAGES[0] if PAGES else run / "gates.html")
print(f"page: {page}")
