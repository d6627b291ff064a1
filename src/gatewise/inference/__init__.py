"""Optimise a whole network for inference with the same outputs, and undo it."""

from gatewise.inference.optimize import InferenceNet as InferenceNet
from gatewise.inference.optimize import optimize_for_inference as optimize_for_inference
