"""Channel gates for convolutional networks: insert them, train them, compare them fairly.

Every public name is imported on first use: `import gatewise` alone loads neither torch nor optional dependencies.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

# Modules that moved are found by the names that they had in 0.1.0, such as gatewise.presets.
__path__.append(str(Path(__file__).parent / "integrations/former_names"))

if TYPE_CHECKING:
    from gatewise import analysis, data, errors
    from gatewise.analysis.benchmark import bench
    from gatewise.analysis.explanation import explain
    from gatewise.comparison import compare, judge
    from gatewise.errors import GatewiseError
    from gatewise.exporting.hub import PretrainedNet
    from gatewise.exporting.prediction import predict
    from gatewise.exporting.writer import export
    from gatewise.gaternet import GaterNet
    from gatewise.gaternet.given_routes import set_routes
    from gatewise.gaternet.recalibration import recalibrate
    from gatewise.gaternet.teaching import TeacherLoss, distillation_loss
    from gatewise.gates import functional
    from gatewise.gates.efficient_channel_attention import EfficientChannelAttention
    from gatewise.gates.gated_channel_transform import GatedChannelTransform
    from gatewise.gates.gather_excite import GatherExcite
    from gatewise.gates.global_context import GlobalContext
    from gatewise.gates.local_response_norm import LocalResponseNorm
    from gatewise.gates.non_local import NonLocal
    from gatewise.gates.registry import Gate, GateSpec, gate_names, gate_spec, make_gate, register_gate
    from gatewise.gates.simplified_non_local import SimplifiedNonLocal
    from gatewise.gates.spec import GateChoice, ModelSpec
    from gatewise.gates.squeeze_excite import SqueezeExcite
    from gatewise.gates.triplet_attention import TripletAttention
    from gatewise.graph import ContextPlace, find_places
    from gatewise.inference import Compaction, InferenceNet, compact, optimize_for_inference, skip_closed_filters
    from gatewise.insertion.insert import Insertion, gates_in, insert_gates
    from gatewise.insertion.loss import GateLoss
    from gatewise.insertion.pruning import gate_pruners
    from gatewise.insertion.tuning import (
        Stage,
        fine_tuning_stages,
        gate_loss,
        parameter_groups,
        train_everything,
        train_only_gates,
    )
    from gatewise.models import make_segmenter
    from gatewise.models.create import make_model
    from gatewise.models.serialization import load_model
    from gatewise.models.weights import Loaded, convert_weights, load_weights
    from gatewise.training import Recipe, train

__all__ = [
    "Compaction",
    "ContextPlace",
    "EfficientChannelAttention",
    "Gate",
    "GateChoice",
    "GateLoss",
    "GateSpec",
    "GatedChannelTransform",
    "GaterNet",
    "GatewiseError",
    "GatherExcite",
    "GlobalContext",
    "InferenceNet",
    "Insertion",
    "Loaded",
    "LocalResponseNorm",
    "ModelSpec",
    "NonLocal",
    "PretrainedNet",
    "Recipe",
    "SimplifiedNonLocal",
    "SqueezeExcite",
    "Stage",
    "TeacherLoss",
    "TripletAttention",
    "analysis",
    "bench",
    "compact",
    "compare",
    "convert_weights",
    "data",
    "distillation_loss",
    "errors",
    "explain",
    "export",
    "find_places",
    "fine_tuning_stages",
    "functional",
    "gate_loss",
    "gate_names",
    "gate_pruners",
    "gate_spec",
    "gates_in",
    "insert_gates",
    "judge",
    "load_model",
    "load_weights",
    "make_gate",
    "make_model",
    "make_segmenter",
    "optimize_for_inference",
    "parameter_groups",
    "predict",
    "recalibrate",
    "register_gate",
    "set_routes",
    "skip_closed_filters",
    "train",
    "train_everything",
    "train_only_gates",
]

_NAMES = {  # by the module that has them
    "gatewise.analysis.benchmark": ("bench",),
    "gatewise.analysis.explanation": ("explain",),
    "gatewise.comparison": ("compare", "judge"),
    "gatewise.errors": ("GatewiseError",),
    "gatewise.exporting.hub": ("PretrainedNet",),
    "gatewise.exporting.prediction": ("predict",),
    "gatewise.exporting.writer": ("export",),
    "gatewise.gaternet": ("GaterNet",),
    "gatewise.gaternet.given_routes": ("set_routes",),
    "gatewise.gaternet.recalibration": ("recalibrate",),
    "gatewise.gaternet.teaching": ("TeacherLoss", "distillation_loss"),
    "gatewise.gates": ("functional",),
    "gatewise.gates.efficient_channel_attention": ("EfficientChannelAttention",),
    "gatewise.gates.gated_channel_transform": ("GatedChannelTransform",),
    "gatewise.gates.gather_excite": ("GatherExcite",),
    "gatewise.gates.global_context": ("GlobalContext",),
    "gatewise.gates.local_response_norm": ("LocalResponseNorm",),
    "gatewise.gates.non_local": ("NonLocal",),
    "gatewise.gates.registry": ("Gate", "GateSpec", "gate_names", "gate_spec", "make_gate", "register_gate"),
    "gatewise.gates.simplified_non_local": ("SimplifiedNonLocal",),
    "gatewise.gates.spec": ("GateChoice", "ModelSpec"),
    "gatewise.gates.squeeze_excite": ("SqueezeExcite",),
    "gatewise.gates.triplet_attention": ("TripletAttention",),
    "gatewise.graph": ("ContextPlace", "find_places"),
    "gatewise.inference": ("Compaction", "InferenceNet", "compact", "optimize_for_inference", "skip_closed_filters"),
    "gatewise.insertion.insert": ("Insertion", "gates_in", "insert_gates"),
    "gatewise.insertion.loss": ("GateLoss",),
    "gatewise.insertion.pruning": ("gate_pruners",),
    "gatewise.insertion.tuning": (
        "Stage",
        "fine_tuning_stages",
        "gate_loss",
        "parameter_groups",
        "train_everything",
        "train_only_gates",
    ),
    "gatewise.models": ("make_segmenter",),
    "gatewise.models.create": ("make_model",),
    "gatewise.models.serialization": ("load_model",),
    "gatewise.models.weights": ("Loaded", "convert_weights", "load_weights"),
    "gatewise.training": ("Recipe", "train"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # otherwise type checkers would accept any misspelt name
    import importlib.util

    def __getattr__(name: str) -> Any:
        """Import a public name, or a package such as `gatewise.inference`, on first use."""
        if name == "PretrainedNet":
            from gatewise.core import _validation

            _validation.import_optional("huggingface_hub", name, "hub")
        if name in _MODULES:
            value = getattr(importlib.import_module(_MODULES[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"gatewise.{name}"):
            value = importlib.import_module(f"gatewise.{name}")
        else:
            raise AttributeError(f"module 'gatewise' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
