"""Small bugs, each with the test that must catch it; `planted_bugs.py` runs them."""

from planted.bug import Bug as Bug
from planted.gates import BUGS as _GATES
from planted.networks import BUGS as _NETWORKS
from planted.training import BUGS as _TRAINING

BUGS = [*_GATES, *_NETWORKS, *_TRAINING]
