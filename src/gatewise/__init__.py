"""Channel gates for convolutional networks: insert them, train them, compare them fairly."""

from gatewise import analysis as analysis
from gatewise import functional as functional
from gatewise._validation import optional_module
from gatewise.assembly import make_model as make_model
from gatewise.errors import GatewiseError as GatewiseError
from gatewise.execution import Compaction as Compaction
from gatewise.execution import compact as compact
from gatewise.execution import skip_closed_filters as skip_closed_filters
from gatewise.gaternet import GaterNet as GaterNet
from gatewise.inference import InferenceNet as InferenceNet
from gatewise.inference import optimize_for_inference as optimize_for_inference
from gatewise.insertion import Insertion as Insertion
from gatewise.insertion import gates_in as gates_in
from gatewise.insertion import insert_gates as insert_gates
from gatewise.interop import Loaded as Loaded
from gatewise.interop import convert_weights as convert_weights
from gatewise.interop import load_weights as load_weights
from gatewise.models import make_segmenter as make_segmenter
from gatewise.places import ContextPlace as ContextPlace
from gatewise.places import find_places as find_places
from gatewise.pruning import gate_pruners as gate_pruners
from gatewise.registry import Gate as Gate
from gatewise.registry import gate_names as gate_names
from gatewise.registry import gate_spec as gate_spec
from gatewise.registry import make_gate as make_gate
from gatewise.registry import register_gate as register_gate
from gatewise.serialization import load_model as load_model
from gatewise.spec import GateChoice as GateChoice
from gatewise.spec import ModelSpec as ModelSpec
from gatewise.tuning import Stage as Stage
from gatewise.tuning import fine_tuning_stages as fine_tuning_stages
from gatewise.tuning import gate_loss as gate_loss
from gatewise.tuning import parameter_groups as parameter_groups
from gatewise.tuning import train_everything as train_everything
from gatewise.tuning import train_only_gates as train_only_gates


def __getattr__(name: str) -> type:
    """Give the gates' classes, from the registry, where a new gate needs no line here, and what needs extras."""
    if name == "PretrainedNet":
        optional_module("huggingface_hub", "sharing networks", "hub")
        from gatewise.hub import PretrainedNet

        return PretrainedNet
    for known in gate_names():
        if gate_spec(known).gate.__name__ == name:
            return gate_spec(known).gate
    raise AttributeError(f"module 'gatewise' has no attribute {name!r}")
