"""Find the places for gates in any network, from its graph and without changing it.

A `Graph` is traced once and passed on. `gatewise.graph.places` has one file for each kind of place.
"""

from gatewise.core.hooks import change_map as change_map
from gatewise.core.hooks import remove_changes as remove_changes
from gatewise.graph.channel_dependencies import ChannelDependency as ChannelDependency
from gatewise.graph.channel_dependencies import find_channel_dependencies as find_channel_dependencies
from gatewise.graph.channel_dependencies import followed_by_norm as followed_by_norm
from gatewise.graph.filters import Filters as Filters
from gatewise.graph.filters import LayerCost as LayerCost
from gatewise.graph.filters import find_filters as find_filters
from gatewise.graph.fusion_patterns import FusionPattern as FusionPattern
from gatewise.graph.fusion_patterns import find_fusion_patterns as find_fusion_patterns
from gatewise.graph.graph import Graph as Graph
from gatewise.graph.graph import own_layers as own_layers
from gatewise.graph.place import Place as Place
from gatewise.graph.place import Places as Places
from gatewise.graph.place import Skipped as Skipped
from gatewise.graph.places.context import ContextPlace as ContextPlace
from gatewise.graph.places.registry import PlaceKind as PlaceKind
from gatewise.graph.places.registry import find_places as find_places
from gatewise.graph.places.registry import place_kind as place_kind
from gatewise.graph.places.registry import place_names as place_names
from gatewise.graph.places.registry import register_place as register_place
from gatewise.graph.structural_copy import rehearsal as rehearsal
from gatewise.graph.trace import evaluation_mode as evaluation_mode
