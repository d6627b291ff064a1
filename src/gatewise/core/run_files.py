"""Names of the files in the folder of a run and in that of a comparison."""

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
