"""GaterNet: a gater network selects, for each image, which filters of a backbone are used."""

from gatewise.gaternet.any_network import plain_network as plain_network
from gatewise.gaternet.any_network import run_with_gates as run_with_gates
from gatewise.gaternet.diagnostics import NEARLY as NEARLY
from gatewise.gaternet.diagnostics import depend_on_image as depend_on_image
from gatewise.gaternet.diagnostics import gate_warnings as gate_warnings
from gatewise.gaternet.network import ESTIMATORS as ESTIMATORS
from gatewise.gaternet.network import GaterNet as GaterNet
from gatewise.gaternet.sites import Site as Site
