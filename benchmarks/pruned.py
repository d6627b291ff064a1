"""Prune a trained network with Torch-Pruning to the multiply-adds of a budget: the static rival of gates.

    python benchmarks/pruned.py RUN --budget 0.5 --out FILE.safetensors
    PYTHONPATH=benchmarks gatewise train --model pruned:build:file=FILE.safetensors --teacher RUN ... --out PRUNED
    PYTHONPATH=benchmarks gatewise evaluate PRUNED --model pruned:build

The first command removes filters of a finished plain run, over all layers the least important first (DepGraph, CVPR
2023; importance: first-order Taylor expansion of the loss on training images), until the network costs no more than a
GaterNet with that budget, its gater included. FILE has the remaining weights; the network that `build` returns has the
sizes of these, so nothing but FILE is needed to train or to load it. For networks of ungrouped convolutions, batch
norms and linear layers.
"""

import argparse
import copy
import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

import gatewise as gw
from gatewise.core.files import write_atomically
from gatewise.data import Augmentation
from gatewise.graph.measure import macs_per_sample
from gatewise.models.serialization import plain_tensors
from gatewise.training.from_recipe import build as set_up
from gatewise.training.runs import Run

_IMAGES = 2048  # training images on which the importance is estimated
_STEPS = 400  # of pruning, from no filter to all but the fewest
_FEWEST = 0.1  # share of the filters that each layer keeps at least
_SIZES = {
    nn.Conv2d: ("out_channels", "in_channels"),
    nn.Linear: ("out_features", "in_features"),
    nn.BatchNorm2d: ("num_features",),
}


def build(file: str, num_classes: int, in_chans: int) -> nn.Module:
    """Return the pruned network of a file, with its weights."""
    with safe_open(file, "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        network = opened.metadata()["network"]
    net = gw.make_model(network, num_classes=num_classes, in_chans=in_chans)
    for name, tensor in weights.items():
        prefix, _, own = name.rpartition(".")
        layer = net.get_submodule(prefix)
        setattr(layer, own, nn.Parameter(tensor) if isinstance(getattr(layer, own), nn.Parameter) else tensor)
        if own == "weight":
            for size, count in zip(_SIZES[type(layer)], tensor.shape, strict=False):
                setattr(layer, size, count)
    return net


def macs_of_budget(net: nn.Module, budget: float, image_size: tuple[int, int]) -> float:
    """Return the multiply-adds for one image of a GaterNet that meets its budget, with the gater."""
    gated = gw.GaterNet(copy.deepcopy(net), budget=budget, image_size=image_size)
    return float(gated.executed_macs(torch.full((1, gated.gate_count), budget)))


def prune(net: nn.Module, macs: float, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Remove filters of a network until it has at most `macs` multiply-adds; its classes stay."""
    import torch_pruning

    net.eval()
    for images, labels in batches:
        nn.functional.cross_entropy(net(images), labels).backward()
        example = images[:1]
    *_, classifier = (layer for layer in net.modules() if isinstance(layer, nn.Linear))
    pruner = torch_pruning.BasePruner(
        net,
        example,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=1 - _FEWEST,
        max_pruning_ratio=1 - _FEWEST,
        iterative_steps=_STEPS,
        ignored_layers=[classifier],
    )
    while macs_per_sample(net, example) > macs:
        if pruner.current_step == _STEPS:
            raise SystemExit(f"{macs / 1e6:.2f} M multiply-adds cannot be reached. Give a larger budget.")
        pruner.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run = Run.open(args.run).checked()
    run.check_has_images()
    if run.spec.gates:
        parser.error(f"{args.run} has gates; give a plain run")
    dataset: Any = run.dataset
    setup = set_up(dataclasses.replace(run.recipe, init=str(args.run), teacher=None).plan(), dataset)
    net = setup.learner.plain_model
    drawn = setup.batches.training(0, seed=0, augmentation=Augmentation())
    batches = itertools.islice(drawn, -(-_IMAGES // setup.batches.batch_size))
    before = macs_per_sample(net, torch.zeros(1, dataset.channels, *dataset.size))
    target = macs_of_budget(net, args.budget, dataset.size)
    prune(net, target, batches)
    macs = macs_per_sample(net, torch.zeros(1, dataset.channels, *dataset.size))
    facts = {"network": run.recipe.model, "run": str(args.run), "macs": str(macs), "budget": str(args.budget)}
    write_atomically(args.out, save(plain_tensors(net.state_dict()), metadata=facts))
    print(f"{args.out}: {macs / 1e6:.2f} M of {before / 1e6:.2f} M multiply-adds, at most {target / 1e6:.2f} M")


if __name__ == "__main__":
    main()
