"""What `fuzz.py` is made of: hostile values, files to spoil, what is called with them, and the processes that call."""

from fuzzing import calls, exports, pictures, runs  # noqa: F401  (importing them adds their targets)
from fuzzing.target import TARGETS as TARGETS
