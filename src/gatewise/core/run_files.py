"""Names of the files in the folder of a run and in that of a comparison."""

import re
from pathlib import Path

RECIPE = "recipe.yaml"  # all options of the training
RELATIVE_TO = "relative_to"  # entry of it, if it has relative paths: the folder that they are relative to
LOG = "log.jsonl"  # one row per epoch
CHECKPOINTS = "checkpoints"  # folder: the last states of the training
TENSORBOARD = "tensorboard"  # folder
WEIGHTS = "model.safetensors"  # written, as all of the following, after the last epoch
CONFIG = "config.json"  # what to build the network from, and its preprocessing
PREDICTIONS = "predictions.safetensors"  # of the validation images
METRICS = "metrics.json"  # the last file: a run that has it is finished

RESULTS = "results.json"  # of a comparison


def folder_name(variant: str) -> str:
    """Return the name of the folder with the runs of one variant of a comparison.

    >>> folder_name("resnet20_wider:parameters=678273")
    'resnet20_wider--parameters=678273'
    """
    return re.sub(r"[^a-zA-Z0-9_.=-]+", "-", variant.replace(":", "--"))


def run_folder(comparison: Path, variant: str, seed: int) -> Path:
    """Return the folder of one run of a comparison."""
    return comparison / "runs" / folder_name(variant) / f"seed_{seed}"
