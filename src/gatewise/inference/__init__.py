"""Run trained networks faster: without closed filters, and with folded and fused layers."""

from gatewise.inference.compaction import Compaction as Compaction
from gatewise.inference.compaction import compact as compact
from gatewise.inference.conditional import ConditionalNet as ConditionalNet
from gatewise.inference.optimize import InferenceNet as InferenceNet
from gatewise.inference.optimize import optimize_for_inference as optimize_for_inference
from gatewise.inference.skip import SkippingNet as SkippingNet
from gatewise.inference.skip import skip_closed_filters as skip_closed_filters
from gatewise.inference.surgery import folded as folded
