"""A whole network made fast for inference, with the same outputs, and made again what it was."""

from gatewise.inference.optimize import InferenceNet as InferenceNet
from gatewise.inference.optimize import optimize_for_inference as optimize_for_inference
