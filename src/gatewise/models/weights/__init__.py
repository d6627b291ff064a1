"""Load weights of other libraries into networks with gates, and convert weights to their layouts."""

from gatewise.models.weights.layouts import LAYOUTS as LAYOUTS
from gatewise.models.weights.load import Loaded as Loaded
from gatewise.models.weights.load import convert_weights as convert_weights
from gatewise.models.weights.load import load_weights as load_weights
