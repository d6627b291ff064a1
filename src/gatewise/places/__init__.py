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

from gatewise.places.channel_dependencies import ChannelDependency as ChannelDependency
from gatewise.places.channel_dependencies import find_channel_dependencies as find_channel_dependencies
from gatewise.places.filters import Filters as Filters
from gatewise.places.filters import LayerCost as LayerCost
from gatewise.places.filters import find_filters as find_filters
from gatewise.places.fusion_patterns import FusionPattern as FusionPattern
from gatewise.places.fusion_patterns import find_fusion_patterns as find_fusion_patterns
from gatewise.places.hooks import change_map as change_map
from gatewise.places.hooks import remove_changes as remove_changes
from gatewise.places.layers import own_layers as own_layers
from gatewise.places.place import ContextPlace as ContextPlace
from gatewise.places.place import Place as Place
from gatewise.places.place import Places as Places
from gatewise.places.place import Skipped as Skipped
from gatewise.places.rules import boundary_places as boundary_places
from gatewise.places.rules import find_places as find_places
from gatewise.places.trace import evaluation_mode as evaluation_mode
