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
        "_fill_routes": {
            "routes keep the norms of other weights": replace("model.norms_follow_backbone()", "None"),
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
        "_fitting": {
            "only known keys of trainers are read": replace("[inside, whole]", "[inside]"),
        },
        "_only_one": {
            "a copy is as good as the network": replace("not reading.prefix.is_copy", "True"),
            "the first of several networks is taken": replace("differs", "False"),
        },
        "_fill": {
            "tensors are copied to the meta device": replace("assign=on_meta", "assign=False"),
            "gates stay on the meta device": remove("materialise_gates(reading.target)"),
        },
        "_fresh_gates": {
            "partly given gates are fresh": replace(
                "[paths for paths in kinds.values() if not any((name.startswith(tuple(paths)) for name in names))]",
                "list(kinds.values())",
            ),
        },
    },
    "models/weights/prefixes.py": {
        "": {
            "module. is removed at the start of any name": replace(
                r're.compile(r"(?<=\.)module\.")', r're.compile(r"module\.")'
            ),
        },
        "Prefix.own": {
            "names with another prefix are taken": remove("if not name.startswith(self.removed): ..."),
        },
        "prefixes": {
            "the network's own prefix is not added": replace("['', *added]", "['']"),
        },
        "Prefix.notes": {
            "a removed prefix is not said": replace(
                "[f'the prefix {self.removed!r} was removed from the names in the file']", "[]"
            ),
        },
    },
    "models/weights/reading.py": {
        "_unpickled": {
            "pickles may execute code": flip("True"),
        },
        "_tensors": {
            "an optimizer's state is taken for weights": replace(
                "isinstance(value, dict) and isinstance(name, str)", "isinstance(value, dict)"
            ),
        },
    },
    "models/weights/inert_pickle.py": {
        "_Unpickler.find_class": {
            "programs are left out in silence": remove(
                "if module.partition('.')[0] in _PROGRAMS or path in _PROGRAMS: ..."
            ),
        },
        "_read_zip": {
            "compressed archives are unpacked": replace("info.compress_type != zipfile.ZIP_STORED", "False"),
        },
        "_items": {
            "buffers that are not saved are loaded": replace("name not in names", "True"),
        },
        "_Tensors.dense": {
            "strides are ignored": replace("tuple(stride)", "tuple(reversed(stride))"),
        },
        "_Tensors.inside": {
            "shared dictionaries are read again": replace("id(value) in self.known", "False"),
        },
    },
    "insertion/meta_device.py": {
        "materialise_gates": {
            "gates keep the type of the empty network": replace("gate.to(dtype=anchor.dtype)", "gate"),
        },
        "_InitialisesGates._init_weights": {
            "gates that were read start again": replace("tensor.copy_(value)", "pass"),
        },
        "InitialisesGates.remove": {
            "undo leaves the class changed": remove("remove_mixin(module, _InitialisesGates)"),
        },
    },
    "core/_torch_compat.py": {
        "MoveObserver._apply": {
            "materialised gates have no values": replace("was_empty and (not has_meta_tensors(self))", "False"),
        },
    },
}
