"""Small bugs, each with the test that must catch it; `planted_bugs.py` runs them."""

from planted.analysis import BUGS as _ANALYSIS
from planted.bug import Bug as Bug
from planted.execution import BUGS as _EXECUTION
from planted.faults import BUGS as _FAULTS
from planted.fused import BUGS as _FUSED
from planted.gaternet import BUGS as _GATERNET
from planted.gates import BUGS as _GATES
from planted.input import BUGS as _INPUT
from planted.interop import BUGS as _INTEROP
from planted.kernels_triton import BUGS as _KERNELS_TRITON
from planted.networks import BUGS as _NETWORKS
from planted.pixels import BUGS as _PIXELS
from planted.presets import BUGS as _PRESETS
from planted.processes import BUGS as _PROCESSES
from planted.segmentation import BUGS as _SEGMENTATION
from planted.tools import BUGS as _TOOLS
from planted.training import BUGS as _TRAINING
from planted.tuning import BUGS as _TUNING

BUGS = [
    *_ANALYSIS,
    *_EXECUTION,
    *_FAULTS,
    *_FUSED,
    *_GATES,
    *_GATERNET,
    *_INPUT,
    *_INTEROP,
    *_KERNELS_TRITON,
    *_NETWORKS,
    *_PIXELS,
    *_PRESETS,
    *_PROCESSES,
    *_SEGMENTATION,
    *_TOOLS,
    *_TRAINING,
    *_TUNING,
]
