"""Find the places for gates in any network, from its graph and without changing it.

- `before_conv`: the input of every convolution (no graph needed).
- `inner`: a map that a convolution produces and exactly one convolution consumes, with only per-channel operations
  between them. The gate acts after normalisation and activation, and before a squeeze-and-excite block of the network.
  Closing a filter there saves the filter and its share of the consumer.
- `residual_end`: the end of each residual branch, after its last layer and before the addition.
- `stage_end`: the last map of each resolution on the network's trunk, as in timm's `feature_info`.
- `context`: each `ContextPlace`, where a network accepts a global context block (no graph needed).
- `context_stages`: the residual ends of the stages that a `ContextPlace` names.
"""

from gatewise.core.hooks import change_map as change_map
from gatewise.core.hooks import remove_changes as remove_changes
from gatewise.graph.channel_dependencies import ChannelDependency as ChannelDependency
from gatewise.graph.channel_dependencies import find_channel_dependencies as find_channel_dependencies
from gatewise.graph.filters import Filters as Filters
from gatewise.graph.filters import LayerCost as LayerCost
from gatewise.graph.filters import find_filters as find_filters
from gatewise.graph.fusion_patterns import FusionPattern as FusionPattern
from gatewise.graph.fusion_patterns import find_fusion_patterns as find_fusion_patterns
from gatewise.graph.layers import own_layers as own_layers
from gatewise.graph.place import ContextPlace as ContextPlace
from gatewise.graph.place import Place as Place
from gatewise.graph.place import Places as Places
from gatewise.graph.place import Skipped as Skipped
from gatewise.graph.rules import boundary_places as boundary_places
from gatewise.graph.rules import find_places as find_places
from gatewise.graph.trace import evaluation_mode as evaluation_mode
