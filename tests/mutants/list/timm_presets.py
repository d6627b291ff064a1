"""Mutants of gatewise.integrations.timm."""

from mutants import remove, replace

CHANGES = {
    "integrations/timm/__init__.py": {
        "_config": {
            "weights promised for gates that change the output": replace(
                "dataclasses.replace(plain, url=None, file=None, hf_hub_id=None, hf_hub_filename=None)", "plain"
            ),
        },
        "_create": {
            "overlay of the pretrained configuration ignored": replace(
                "_models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)",
                "_models.resolve_pretrained_cfg(name, pretrained_cfg)",
            ),
            "pretrained omitted": replace("pretrained", "False", nth=2),
            "a preset does not tell timm what must not decay": replace("no_weight_decay_names(model)", "set()"),
        },
        "_of_ours": {
            "zeros of train.py rejected": replace(
                "{key: value for key, value in options.items() if value or key not in _RATES}",
                "{key: value for key, value in options.items()}",
            ),
            "rates ignored silently": replace("value or key not in _RATES", "key not in _RATES"),
            "classes of an own network not reported": replace("options['num_classes']", "config['num_classes']"),
        },
    },
    "integrations/timm/__main__.py": {
        "main": {
            "the script does not see its arguments": remove("sys.argv = arguments"),
            "the script does not find modules of its folder": remove(
                "sys.path.insert(0, str(script.resolve().parent))"
            ),
        },
    },
}
