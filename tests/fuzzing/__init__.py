"""The parts of `fuzz.py`: hostile values, files to corrupt, targets to call with them, and worker processes."""

from fuzzing import calls, exports, pictures, runs  # noqa: F401  (importing them adds their targets)
from fuzzing.target import TARGETS as TARGETS
