"""Mutants of gatewise.models.weights."""

from mutants import flip, remove, replace

CHANGES = {
    "models/weights/layouts.py": {
        "": {
            "strides of the released network ignored": remove("why_not_for=_why_not_strides_of_gct"),
            "branches of triplet attention exchanged": replace(
                "'\\\\1@triplet.cw.conv.\\\\2'", "'\\\\1@triplet.hc.conv.\\\\2'"
            ),
        },
        "_unit.write": {
            "stages counted from one": replace("int(match[1]) + shift", "int(match[1])"),
        },
        "_finish_timm": {
            "timm's scale treated as ours": replace("(inner / channels) ** 0.5", "1.0"),
            "a different eps of timm is not reported": replace(
                "norm is not None and norm[1].eps != _TIMM_EPS", "False"
            ),
        },
        "_fold_norms": {
            "batch norms folded without their means": replace(
                "weights.pop(key).double()", "weights.pop(key).double() * (end != 'running_mean')"
            ),
        },
    },
    "models/weights/load.py": {
        "load_weights": {
            "unexpected tensors accepted": replace("strict and (not reading.is_part)", "False"),
            "loads nothing in silence": remove("if not fitting: ..."),
            "missing tensors accepted": replace("reading.missing if strict else []", "[]"),
        },
        "_Reading.is_complete": {
            "a file that lacks tensors is complete": replace("not self.missing", "True"),
            "unread gates of a detector are new": replace(
                "self.layout is None and bool(_recognised(self.unexpected))", "False"
            ),
        },
        "_targets": {
            "heads of detectors overwritten": replace("isinstance(body, nn.Module)", "False"),
        },
        "_fresh_gates": {
            "partly given gates are fresh": replace(
                "[paths for paths in kinds.values() if not any((name.startswith(tuple(paths)) for name in names))]",
                "list(kinds.values())",
            ),
        },
    },
    "models/weights/reading.py": {
        "_unpickled": {
            "pickles may execute code": flip("True"),
        },
    },
    "insertion/meta_device.py": {
        "_InitialisesGates._init_weights": {
            "gates that were read start again": replace("tensor.copy_(value)", "pass"),
        },
        "InitialisesGates.remove": {
            "undo leaves the class changed": remove("remove_mixin(module, _InitialisesGates)"),
        },
    },
}
