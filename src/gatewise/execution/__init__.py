"""Run a trained GaterNet without its closed filters: remove them permanently, or skip them for each image."""

from gatewise.execution.compaction import Compaction as Compaction
from gatewise.execution.compaction import compact as compact
from gatewise.execution.conditional import ConditionalNet as ConditionalNet
from gatewise.execution.skip import SkippingNet as SkippingNet
from gatewise.execution.skip import skip_closed_filters as skip_closed_filters
from gatewise.execution.surgery import folded as folded
