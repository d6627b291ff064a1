"""Targets that read what `gatewise export` writes."""

import json
import zipfile
from pathlib import Path

from fuzzing.box import Box
from fuzzing.runs import everything, evil_weights
from fuzzing.target import Call, target
from gatewise.exporting import details_of
from gatewise.prediction import predict


@target(50, exported=True)
def exported_file(box: Box) -> Call:
    name = "net.pt2" if box.rng.random() < 0.6 else "net.onnx"
    file = box.copied(name)
    if name == "net.pt2" and box.rng.random() < 0.7:
        _changed_archive(box, file)
    else:
        file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
    if box.rng.random() < 0.2:
        file = file.rename(file.with_suffix(box.rng.choice((".onnx", ".pt2", ".bin", ""))))
    picture_file = box.copied("images/PNG-L.png")
    if box.rng.random() < 0.3:
        return lambda: details_of(file)
    return lambda: everything(predict(file, [picture_file]))


def _changed_archive(box: Box, file: Path) -> None:
    """Change one entry of an archive of torch.export, or add one that would run something."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    interesting = [name for name in entries if "/weights/weight_" not in name]
    name = box.rng.choice(interesting)
    kind = box.rng.randrange(6)
    evil = f"__import__('os').system('touch {box.canary}')"
    if kind == 0:
        name = "archive/data/sample_inputs/model.pt"
        entries[name] = evil_weights(box)
    elif kind == 1:
        name = box.rng.choice((
            "archive/data/weights/model.pt",
            "archive/data/constants/model.pt",
            "archive/data/aotinductor/model/x.so",
        ))
        entries[name] = evil_weights(box)
    elif kind == 2:
        text = entries["archive/models/model.json"].decode()
        old, new = box.rng.choice((
            ('"guards_code":[]', json.dumps({"guards_code": [evil]})[1:-1]), ('"s', json.dumps(evil)[:-1]),
            ('"expr_str":"', f'"expr_str":"{evil}'), ("torch.ops.aten.relu.default", "torch.os.system"), ("builtins.tuple", "collections.defaultdict"),
        ))  # fmt: skip
        entries["archive/models/model.json"] = text.replace(old, new, box.rng.choice((1, -1))).encode()
    elif kind == 3 and name.endswith(".json"):
        entries[name] = box.hostile.as_json(box.hostile.changed_json(json.loads(entries[name])))
    elif kind == 4:
        name = "archive/data/constants/model_constants_config.json"
        config = json.loads(entries[name])
        for meta in config["config"].values():
            meta["path_name"], meta["use_pickle"] = box.rng.choice(("opaque_obj_0", "custom_obj_0", "tensor_0")), True
            entries[f"archive/data/constants/{meta['path_name']}"] = evil_weights(box)
        entries[name] = json.dumps(config).encode()
    else:
        entries[name] = box.hostile.changed_bytes(entries[name])
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
