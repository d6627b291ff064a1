"""The parts of `fuzz.py`: hostile values, files to corrupt, targets to call with them, and worker processes."""

from support.fuzzing import calls, exports, pictures, runs  # noqa: F401  (importing them adds their targets)
from support.fuzzing.target import TARGETS as TARGETS
