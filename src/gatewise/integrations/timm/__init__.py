"""Register gated networks with timm.

First `import gatewise.integrations.timm`, then `timm.create_model("gct_resnet50.gatewise")`.

timm has no plugin mechanism, so the names exist only after this module is imported. `python -m
gatewise.integrations.timm SCRIPT` imports it for a script that does not, such as timm's train.py.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.gates.presets import PRESETS, TAG
from gatewise.gates.registry import gate_spec
from gatewise.gates.spec import ModelSpec
from gatewise.insertion.tuning import no_weight_decay_names
from gatewise.models import model_names
from gatewise.models.create import make_model

_models: Any = _validation.import_optional("timm", "gatewise.integrations.timm").models

__all__ = ["PRESETS", "TAG"]  # timm appends the registered names
_CIFAR: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "num_classes": 10,
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}
_RATES = ("drop_rate", "drop_path_rate", "drop_block_rate")


def _config(spec: ModelSpec) -> Any:
    """Return timm's PretrainedCfg of a preset: that of its plain network, for loading its weights.

    Without weights if new gates would change the output, since the plain network's weights would not work.
    """
    if spec.model in model_names():
        return _models.PretrainedCfg(**_CIFAR)
    plain = _models.get_pretrained_cfg(spec.model)
    if all(gate_spec(choice.name).make(64, device="meta", **choice.options).identity_at_init for choice in spec.gates):
        return plain
    return dataclasses.replace(plain, url=None, file=None, hf_hub_id=None, hf_hub_filename=None)


def _create(
    name: str,
    /,
    *,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
    **options: Any,
) -> nn.Module:
    """Build a preset for timm's `create_model`."""
    spec = ModelSpec.parse(PRESETS[name])
    config = _models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    model: Any
    if spec.model in model_names():
        model = _of_ours(name, spec, config.to_dict(), pretrained=pretrained, **options)
    else:
        if pretrained and not config.has_weights:
            gates = "+".join(map(str, spec.gates))
            raise errors.InvalidValueError(
                f"{name} has no pretrained weights, because new {gates} gates change the output. To start from those "
                f"of {spec.model} all the same, use gatewise.make_model('{spec.model}:pretrained=true+{gates}')."
            )
        options |= {"pretrained": pretrained, "pretrained_cfg": config, "cache_dir": cache_dir}
        model = make_model(dataclasses.replace(spec, model_options={**spec.model_options, **options}))
    if names := no_weight_decay_names(model):
        model.no_weight_decay = partial(set, names)  # timm calls it if it gets no param_group_fn
    return model


def _of_ours(name: str, spec: ModelSpec, config: dict[str, Any], *, pretrained: bool, **options: Any) -> Any:
    """Build one of our networks and attach timm's `pretrained_cfg` and `default_cfg`."""
    if pretrained:
        raise errors.InvalidValueError(
            f"{name} has no pretrained weights. Omit the option `pretrained`, and train the network."
        )
    if options.pop("features_only", False):
        raise errors.InvalidValueError(
            f"{name} does not support features_only, it returns only logits. Choose a preset of a timm network, for "
            f"example gct_resnet18."
        )
    options = {key: value for key, value in options.items() if value or key not in _RATES}  # train.py passes zeros
    for key, value in (("num_classes", config["num_classes"]), ("in_chans", config["input_size"][0])):
        options.setdefault(key, value)
    model: Any = make_model(dataclasses.replace(spec, model_options={**spec.model_options, **options}))
    model.num_classes = options["num_classes"]
    model.pretrained_cfg = model.default_cfg = config
    return model


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(name, pretrained=pretrained, **options)

    create.__name__ = create.__qualname__ = name  # timm registers a function by its __name__
    create.__doc__ = f"Build {PRESETS[name]}."
    return create


# resolve_pretrained_cfg and generate_default_cfgs are undocumented, but timm.models exports them, and all of timm's own
# model files use them: there is no other way to register a model with its config.
default_cfgs = _models.generate_default_cfgs({  # timm looks up this name in the module
    f"{name}.{TAG}": _config(ModelSpec.parse(text)) for name, text in PRESETS.items()
})
for _name in PRESETS:
    globals()[_name] = _models.register_model(_entry_point(_name))
