"""Trainings with the trainers on docs/ultralytics.md, without the internet: ultralytics_in_process.py FOLDER."""

import itertools
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(FOLDER)}  # settings and caches stay in this folder


def no_internet(*_: Any, **__: Any) -> None:
    """Stop at any attempt to reach another machine, for weights, fonts or news."""
    raise AssertionError("ultralytics looks for something on the internet")


socket.getaddrinfo = socket.socket.connect = no_internet  # type: ignore[assignment, method-assign]

import numpy as np  # noqa: E402 - after the internet is gone
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import gatewise as gw  # noqa: E402
from support.project import ROOT  # noqa: E402
from support.trained_elsewhere import changed, of_gates, snapshot  # noqa: E402

OPTIONS: dict[str, Any] = {
    "imgsz": 32, "batch": 8, "nbs": 8, "workers": 0, "device": "cpu", "project": str(FOLDER / "runs"), "exist_ok": True,
    "plots": False, "amp": False, "pretrained": False, "optimizer": "SGD", "lr0": 0.1, "warmup_epochs": 0,
    "save_period": 1, "verbose": False,
}  # fmt: skip


def images(folder: Path, generator: np.random.Generator, count: int = 8) -> None:
    """Write noise as images."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def class_folder() -> Path:
    """Write a folder with two classes."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            images(FOLDER / "classes" / split / name, generator)
    return FOLDER / "classes"


def boxes() -> Path:
    """Write images with one box each, and return the file that describes them."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        images(FOLDER / "boxes/images" / split, generator)
        labels = FOLDER / "boxes/labels" / split
        labels.mkdir(parents=True)
        for number in range(8):
            (labels / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    file = FOLDER / "boxes.yaml"
    file.write_text(f"path: {FOLDER / 'boxes'}\ntrain: images/train\nval: images/val\nnames: {{0: box}}\n")
    return file


def watched(trainer: Any) -> list[dict[str, torch.Tensor]]:
    """Return a list that gets the tensors of the network at the start and after each epoch of the training."""
    kept: list[dict[str, torch.Tensor]] = []
    for event in ("on_train_start", "on_train_epoch_end"):
        trainer.add_callback(event, lambda host: kept.append(snapshot(host.model)))
    return kept


def stages(kept: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Return which tensors each epoch changed."""
    gates = of_gates(kept[0])
    after = [changed(*pair) for pair in itertools.pairwise(kept)]
    return {"gates": len(gates), "others": len(kept[0]) - len(gates), "changed": [
        [len(of_gates(names)), len(names - of_gates(names))] for names in after
    ]}  # fmt: skip


def decayed(trainer: Any) -> list[str]:
    """Return which kinds of gct's parameters have weight decay."""
    ids = {id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    return sorted({
        name.rpartition(".")[2] for name, p in trainer.model.named_parameters() if ".gct." in name and id(p) in ids
    })


def fused_agrees(file: Path, size: int = 32) -> dict[str, Any]:
    """Return how far a checkpoint's output changes when ultralytics fuses its layers, and without its gates."""
    net = torch.load(file, weights_only=False)["model"].float().eval()
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = net(x)[1]
        plain = [gate.gamma.clone() for gate in gw.gates_in(net).values()]
        for gate in gw.gates_in(net).values():
            gate.gamma.zero_(), gate.beta.zero_()
        without = net(x)[1]
        net = torch.load(file, weights_only=False)["model"].float().eval().fuse(verbose=False)
        fused = net(x)[1]
    scale = float(first.std())
    return {
        "gates": len(plain), "fused_gates": len(gw.gates_in(net)),
        "fused": float((fused - first).abs().max()) / scale, "without": float((without - first).abs().max()) / scale,
    }  # fmt: skip


def main() -> None:
    """Train a classifier, resume it, and train a detector; write what was found."""
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/ultralytics.md").read_text(), flags=re.DOTALL))
    definitions, _, training = code.partition("trainer = ")
    names: dict[str, Any] = {"folder": str(class_folder()), "options": {**OPTIONS, "name": "first"}}
    exec(definitions, names)
    exec(f"trainer = {training}".replace("trainer.train()", ""), names)
    trainer = names["trainer"]
    kept = watched(trainer)
    trainer.train()
    weights = FOLDER / "runs/first/weights"
    found: dict[str, Any] = {"classify": stages(kept), "decayed": decayed(trainer)}
    found["checkpoint"] = fused_agrees(weights / "last.pt")

    saved = torch.load(weights / "epoch0.pt", weights_only=False)["ema"].float().state_dict()
    resumed = names["GatedClassification"](
        overrides={"model": str(weights / "epoch0.pt"), "resume": str(weights / "epoch0.pt")}
    )
    kept = watched(resumed)
    resumed.train()
    found["resumed"] = {**stages(kept), "lost": sorted(changed(saved, kept[0])), "epochs": len(kept) - 1}

    options = {
        **OPTIONS,
        "imgsz": 64,
        "name": "boxes",
        "epochs": 2,
        "batch": 4,
        "nbs": 4,
        "model": "yolov8n.yaml",
        "lr0": 0.01,
    }
    detector = names["GatedDetection"](overrides={**options, "data": str(boxes())})
    kept = watched(detector)
    detector.train()
    found["detect"] = stages(kept)
    (FOLDER / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
