"""Load weights of other libraries into networks with gates, and convert weights to their layouts."""

from gatewise.interop.layouts import LAYOUTS as LAYOUTS
from gatewise.interop.load import Loaded as Loaded
from gatewise.interop.load import convert_weights as convert_weights
from gatewise.interop.load import load_weights as load_weights
