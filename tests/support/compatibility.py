"""Third-party tools, kinds of networks, and the remark or error of each pair: one list for tests and page."""

from collections.abc import Callable
from dataclasses import dataclass

from support import compression_checks as compression
from support import looking_checks as looking
from support import tool_checks as checks
from support.compatible_networks import KINDS


@dataclass(frozen=True)
class Tool:
    """A tool and its check on one kind of network.

    Attributes:
        name: name on the page.
        check: fails, or returns a remark; the page shows its docstring.
        slow: whether the check takes more than a few seconds for all networks.
    """

    name: str
    check: Callable[[str], str]
    slow: bool = False


@dataclass(frozen=True)
class ExpectedError:
    """An expected error.

    Attributes:
        error: name of its class.
        message: part of its message, with "*" for parts that differ between networks.
    """

    error: str
    message: str


TOOLS = [
    Tool("`torch.compile`", checks.compiles, slow=True),
    Tool("`torch.compile`, training", checks.compiles_in_training, slow=True),
    Tool("`torch.export`", checks.exports, slow=True),
    Tool("`torch.export`, strict", checks.exports_strictly, slow=True),
    Tool("`torch.fx.symbolic_trace`", checks.traces),
    Tool("`torch.func.functional_call`", checks.calls_with_other_weights, slow=True),
    Tool("`torch.func`: `vmap` of `grad`", checks.gives_gradients_of_each_image, slow=True),
    Tool("activation checkpointing", checks.is_checkpointed),
    Tool("activation checkpointing of units", checks.has_checkpointed_units),
    Tool("`DistributedDataParallel`", checks.runs_in_ddp, slow=True),
    Tool("FSDP2", checks.runs_in_fsdp, slow=True),
    Tool("`AveragedModel`", checks.averages),
    Tool("timm's `ModelEmaV3`", checks.averages_by_timm),
    Tool("`torch.jit.trace`", looking.traces_by_jit, slow=True),
    Tool("`torch.jit.script`", looking.scripts),
    Tool("torchvision's `create_feature_extractor`", looking.features),
    Tool("`torch.fx` fusing", looking.fuses_by_fx),
    Tool("FX quantisation", looking.prepares_quantisation, slow=True),
    Tool("torchinfo", looking.is_summarised),
    Tool("fvcore", looking.is_counted_by_fvcore, slow=True),
    Tool("`FlopCounterMode`", looking.is_counted_by_torch),
    Tool("torch-pruning", compression.prunes, slow=True),
    Tool("torchao, weights", compression.quantizes_weights, slow=True),
    Tool("torchao, weights and activations", compression.quantizes_activations, slow=True),
]

_GATERS = ("GaterNet", "local", "compacted")
_INFERENCE = ExpectedError(
    "InvalidValueError", "a skipping net is for inference only. Train the GaterNet that it was made from."
)
_RECORDED = (
    "a skipping net reads the gates of each batch in Python, which torch.export, torch.fx, torch.func and torch.jit "
    "cannot trace. Use the GaterNet that it was made from; to export a run: gatewise export RUN --form skip"
)
_UNCOMPILED = ExpectedError(
    "Unsupported",
    "a skipping net reads the gates of each batch in Python to select weights, so it runs uncompiled. Compile the "
    "GaterNet that it was made from, or omit fullgraph=True.",
)
_TRACED = ExpectedError(
    "InvalidTypeError",
    "GaterNet expects a tensor, got a Proxy of torch.fx.symbolic_trace, which cannot trace data-dependent code. "
    "Use torch.export.export(network, (example,)) instead.",
)
_GATES_GONE = ExpectedError(
    "InvalidValueError",
    "activation checkpointing recomputes a part of GaterNet's backbone in the backward pass, without its gates. "
    "Disable it in the backbone, and checkpoint the GaterNet instead: "
    "torch.utils.checkpoint.checkpoint(net, images, use_reentrant=False)",
)
_CUT = ExpectedError(
    "InvalidValueError",
    "* expect a map of * channels, got *: the backbone was changed after the GaterNet was built. Prune a network "
    "before that; gatewise.compact removes closed filters from a GaterNet.",
)

_SCRIPTED = ExpectedError(
    "InvalidTypeError",
    "torch.jit.script cannot compile *. Use torch.export.export, gatewise.export, or torch.jit.trace with an example.",
)
_FUSING = (looking.fuses_by_fx, looking.prepares_quantisation)

# Expected error or remark by the tool's check and the kind of network, for pairs that do not simply work.
EXCEPTIONS: dict[tuple[Callable[[str], str], str], ExpectedError | str] = {
    (checks.compiles, "skipping"): _UNCOMPILED,
    (checks.compiles_in_training, "skipping"): _UNCOMPILED,
    (checks.exports, "skipping"): ExpectedError("InvalidValueError", _RECORDED),
    (checks.exports_strictly, "skipping"): ExpectedError("Unsupported", _RECORDED),
    **{(checks.exports_strictly, kind): checks.SIDE_EFFECTS for kind in _GATERS},
    (checks.traces, "skipping"): ExpectedError("InvalidValueError", _RECORDED),
    **{(checks.traces, kind): _TRACED for kind in _GATERS},
    (checks.calls_with_other_weights, "skipping"): _INFERENCE,
    (checks.gives_gradients_of_each_image, "skipping"): ExpectedError("InvalidValueError", _RECORDED),
    **{(checks.gives_gradients_of_each_image, kind): checks.UNBATCHED for kind in ("`lrn`", "`nl`")},
    (checks.is_checkpointed, "skipping"): _INFERENCE,
    (checks.has_checkpointed_units, "skipping"): _INFERENCE,
    **{(checks.has_checkpointed_units, kind): _GATES_GONE for kind in _GATERS},
    (checks.runs_in_ddp, "skipping"): ExpectedError(
        "RuntimeError",
        "DistributedDataParallel is not needed when a module doesn't have any parameter that requires a gradient.",
    ),
    (checks.runs_in_fsdp, "skipping"): ExpectedError(
        "RuntimeError", "FSDP does not support non-contiguous parameters yet"
    ),
    (checks.averages, "skipping"): _INFERENCE,
    (checks.averages_by_timm, "skipping"): _INFERENCE,
    **{(compression.prunes, f"`{name}`"): compression.LEFT for name in ("eca", "gc", "snl", "triplet")},
    **{(compression.prunes, kind): _CUT for kind in _GATERS},
    (compression.prunes, "`ge`"): ExpectedError(
        "InvalidValueError",
        "GatherExcite expects a feature map of shape (N, *, H, W), got *. Build it with channels=*, or pass the output "
        "of a layer with * channels.",
    ),
    (compression.prunes, "skipping"): compression.UNREAD,
    **{(looking.scripts, kind): _SCRIPTED for kind in KINDS},
    (looking.scripts, "skipping"): ExpectedError("InvalidValueError", _RECORDED),
    **{(check, kind): _TRACED for check in (looking.features, *_FUSING) for kind in _GATERS},
    **{(check, "skipping"): ExpectedError("InvalidValueError", _RECORDED) for check in (looking.features, *_FUSING)},
    (looking.is_summarised, "`gct`"): looking.TWICE,
    (looking.is_summarised, "local"): looking.DECIDERS,
    **{(looking.is_summarised, kind): looking.MISSING for kind in ("`eca`", "`ge`", "`se`")},
    (looking.is_summarised, "skipping"): looking.OTHERS,
    (looking.traces_by_jit, "skipping"): ExpectedError("InvalidValueError", _RECORDED),
    (looking.is_counted_by_fvcore, "skipping"): ExpectedError(
        "InvalidValueError",
        "a skipping net has no state dict: its weights are folded and sliced copies. Save and load the GaterNet that "
        "it was made from, or use torch.save on the skipping net itself.",
    ),
}

PAIRS = [(tool, kind) for tool in TOOLS for kind in KINDS]
