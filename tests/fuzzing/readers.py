"""Targets that read files: runs, recipes, weights, images, tables, folders of images, exported files."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

import gatewise as gw
from fuzzing.base import FORMATS, MODES, TINY, encoded, picture
from fuzzing.box import Box
from fuzzing.target import Call, target
from gatewise.analysis.runs import open_runs
from gatewise.checkpoint import load_state, state_progress
from gatewise.data import load_dataset
from gatewise.data.decode import decode
from gatewise.data.load import load_pairs
from gatewise.data.masks import decode_mask
from gatewise.export import details_of
from gatewise.files import SEAL, read_json, read_json_lines, seal
from gatewise.interop.reading import read_weights
from gatewise.predict import predict
from gatewise.training import Recipe, train


def _everything(found: Any) -> list[Any]:
    return list(found)


def _changed_config(box: Box, file: Path) -> None:
    """Change plain values in a JSON file."""
    try:
        content = box.hostile.changed_json(json.loads(file.read_bytes()))
    except (ValueError, RecursionError):  # it is spoiled already
        return
    file.write_bytes(box.hostile.as_json(_sealed(content) if box.rng.random() < 0.9 else content))


def _sealed(content: Any) -> Any:
    """Return a changed record with the seal of its new values, so that it is they that are looked at."""
    if not isinstance(content, dict) or SEAL not in content:
        return content
    plain = json.loads(json.dumps(content, default=str))
    return {**plain, SEAL: seal(plain)}


def _changed_recipe(box: Box, file: Path) -> None:
    kind = box.rng.random()
    text = file.read_bytes().decode(errors="replace") if file.is_file() else "epochs: 3\n"
    if kind < 0.4:
        try:
            values = box.hostile.changed_json(yaml.safe_load(text))
        except yaml.YAMLError:
            return
        text = json.dumps(values, default=str) if box.rng.random() < 0.5 else yaml.dump(values)
    elif kind < 0.7:
        text = box.hostile.changed_text(text)
    elif kind < 0.8:
        text += f"gate: !!python/object/apply:builtins.open [{str(box.canary)!r}, w]\n"
    elif kind < 0.85:
        text = (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
            )
            + "gate: *j\n"
        )
    elif kind < 0.9:
        text = "gate: " + "[" * 3000
    else:
        file.write_bytes(box.hostile.changed_bytes(text.encode()))
        return
    file.write_bytes(text.encode("utf-8", "surrogatepass"))


@target(80)
def recipe_file(box: Box) -> Call:
    file = box.copied("run/recipe.yaml")
    _changed_recipe(box, file)
    return lambda: Recipe.load(file)


@target(60)
def json_file(box: Box) -> Call:
    file = box.copied("run/metrics.json" if box.rng.random() < 0.5 else "run/log.jsonl")
    file.write_bytes(box.hostile.changed_bytes(file.read_bytes()) if box.rng.random() < 0.7 else box.hostile.as_json(1))
    return lambda: (read_json_lines if file.suffix == ".jsonl" else read_json)(file)


def _spoiled_run(box: Box, name: str) -> Path:
    """Copy a run and change one or two of its files."""
    run = box.copied(name)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    for _ in range(box.rng.choice((1, 1, 2))):
        kind = box.rng.randrange(8)
        if kind < 4:
            _changed_config(box, run / "config.json")
        elif kind == 4:
            _changed_config(box, run / "metrics.json")
        elif kind == 5:
            _changed_recipe(box, run / "recipe.yaml")
        elif kind == 6:
            file = run / box.rng.choice((
                "log.jsonl",
                "model.safetensors",
                "config.json",
                "metrics.json",
                "predictions.safetensors",
            ))
            file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
        else:
            file = run / box.rng.choice((
                "log.jsonl",
                "model.safetensors",
                "config.json",
                "metrics.json",
                "recipe.yaml",
            ))
            file.unlink()
            if box.rng.random() < 0.3:
                file.mkdir()
            elif box.rng.random() < 0.5:
                file.write_bytes(b"" if box.rng.random() < 0.5 else box.evil_pickle())
        if not (run / "config.json").is_file() or not (run / "metrics.json").is_file():
            break
    return run


@target(120)
def run_folder(box: Box) -> Call:
    run = _spoiled_run(box, "run" if box.rng.random() < 0.93 else "gater")
    image = box.copied("images/PNG-L.png")
    kind = box.rng.randrange(4)
    if kind == 0:
        return lambda: gw.load_model(run)
    if kind == 1:
        return lambda: open_runs([run])
    if kind == 2:
        return lambda: _everything(predict(run, [image]))
    return lambda: (
        gw.PretrainedNet.of_run(run).generate_model_card()
        if box.rng.random() < 0.5
        else gw.PretrainedNet.from_pretrained(run)
    )


@target(10)
def compacted_run(box: Box) -> Call:
    run = box.copied("run")
    config = json.loads((run / "config.json").read_text())
    step: Any = {"states": "1" * 10, "images": 3, "sites": [], "whole": [], "difference": 0.0, "checked": 0, "disagreeing": 0,
                 "macs_before": 1, "macs_after": 1, "parameters_before": 1, "parameters_after": 1}  # fmt: skip
    config["compacted"] = box.hostile.changed_json([step])
    (run / "config.json").write_text(json.dumps(_sealed(config)))
    return lambda: gw.load_model(run)


@target(30)
def checkpoint(box: Box) -> Call:
    run = box.copied("run")
    (state,) = (run / "checkpoints").glob("step_*")
    if box.rng.random() < 0.7:
        _changed_config(box, state / "state.json")
    else:
        file = state / box.rng.choice(("state.json", "state.safetensors"))
        file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
    if box.rng.random() < 0.15:  # whole trainings are written in the run's folder
        shutil.copytree(run, box.out)
        (box.out / "metrics.json").unlink()
        recipe = Recipe.load(box.out / "recipe.yaml")
        return lambda: train(recipe, box.out, resume=True)
    net = gw.make_model(f"{TINY}+gct@inner", in_chans=1)
    optimizer = torch.optim.SGD(gw.parameter_groups(net, 5e-4), lr=0.1, momentum=0.9)
    return lambda: (state_progress(state), load_state(state, {"model": net}, optimizer))


@target(80)
def file_of_weights(box: Box) -> Call:
    kind = box.rng.random()
    if kind < 0.35:
        file = box.spoiled(box.rng.choice(("weights.pt", "old.pt")))
    elif kind < 0.55:
        file = box.copied("run/model.safetensors")
        file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
    elif kind < 0.7:
        file = box.inputs / f"evil.{box.rng.choice(('pt', 'pth', 'bin', 'safetensors', 'ckpt'))}"
        file.write_bytes(_evil_weights(box))
    else:
        file = box.inputs / "odd.pt"
        torch.save(
            {
                box.hostile.word(): box.hostile.plain() if box.rng.random() < 0.4 else box.hostile.tensor()
                for _ in range(4)
            },
            file,
        )
    strict, source = (
        box.rng.random() < 0.5,
        box.rng.choice(("auto", "auto", "gct", "mmcv", "timm", "triplet", "gaternet", "gatewise", "x")),
    )
    if box.rng.random() < 0.3:
        return lambda: read_weights(file)
    net = gw.make_model(f"{TINY}+{box.rng.choice(('gct@inner', 'gc', 'nl', 'se'))}", in_chans=1)
    return lambda: gw.load_weights(net, file, source, strict=strict)


def _evil_weights(box: Box) -> bytes:
    """Return a pickle that writes the canary, bare or as torch.save packs it."""
    if box.rng.random() < 0.5:
        return box.evil_pickle()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", box.evil_pickle())
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@target(20)
def safetensors_of_odd_types(box: Box) -> Call:
    run = box.copied("run")
    from safetensors.torch import load_file

    weights = load_file(run / "model.safetensors")
    name = box.rng.choice(list(weights))
    weights[name] = box.hostile.tensor()
    content = save(weights, {"note": box.hostile.word().encode(errors="replace").decode()})
    (run / "model.safetensors").write_bytes(content)
    config = json.loads((run / "config.json").read_text())
    import hashlib

    config["sha256"] = hashlib.sha256(content).hexdigest()
    (run / "config.json").write_text(json.dumps(_sealed(config)))
    return lambda: open_runs([run])


def _hostile_image(box: Box) -> bytes:
    """Return an image of odd form, or one that is none."""
    kind, rng = box.rng.random(), box.rng
    if kind < 0.6:
        files = sorted((box.base / "images").iterdir())
        content = rng.choice(files).read_bytes()
        return content if rng.random() < 0.15 else box.hostile.changed_bytes(content)
    if kind < 0.75:
        size = rng.choice(((1, 1), (1, 5000), (5000, 1), (2, 3)))
        return encoded(picture(rng.choice(MODES), size), rng.choice(FORMATS)) or b""
    if kind < 0.8:
        return _bomb(rng.choice((2000, 13_000, 50_000, 2**31 - 1)), rng.choice((2000, 13_000, 2**31 - 1)))
    if kind < 0.85:
        return b"P6\n%d %d\n255\n" % (rng.choice((0, 1, 99999999)), rng.choice((0, 1, 10**20))) + b"abc"
    if kind < 0.9:
        return box.evil_pickle()
    return rng.choice((
        b"",
        b"\0" * 100,
        b"%!PS-Adobe-3.0 EPSF\n(x) run",
        b"<svg onload='alert(1)'/>",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"BM",
        b"RIFF\0\0\0\0WEBP",
        rng.randbytes(200),
    ))


def _bomb(width: int, height: int) -> bytes:
    """Return a PNG that says to be huge and holds next to nothing."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )


@target(150)
def image(box: Box) -> Call:
    content = _hostile_image(box)
    call = decode if box.rng.random() < 0.8 else decode_mask
    return lambda: call("file", content)


@target(30)
def predicted_image(box: Box) -> Call:
    run = box.base / "run"
    file = box.inputs / box.rng.choice(("a b.png", "é.jpg", "x.gif", "no suffix", "猫.txt", "-.png"))
    file.write_bytes(_hostile_image(box))
    paths: list[Any] = [file] if box.rng.random() < 0.8 else [box.hostile.word().strip("/.~") or "x"]  # no whole disk
    top = 5 if box.rng.random() < 0.8 else box.hostile.value()
    return lambda: _everything(predict(run, paths, top_k=top))


@target(50)
def table(box: Box) -> Call:
    name = "table" if box.rng.random() < 0.7 else "masks"
    folder = box.copied(name)
    kind = box.rng.random()
    for file in folder.glob("*.parquet"):
        if kind < 0.4:
            file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
        elif kind < 0.95:
            _changed_table(box, file)
        else:
            file.write_bytes(b"")
    if name == "masks":
        return lambda: load_pairs(folder)
    size, loading = box.rng.choice(((None, "auto"), (8, "stream"), (8, "memory"), (box.hostile.value(), "auto")))
    return lambda: load_dataset(folder, size, loading)


def _changed_table(box: Box, file: Path) -> None:
    """Replace a column, a few of its cells, or what the file says of its classes."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    found = parquet.read_table(file)
    columns = found.to_pydict()
    name = box.rng.choice(list(columns))
    kind = box.rng.randrange(5)
    metadata = found.schema.metadata
    if kind == 0:
        columns[box.hostile.word() or "x"] = columns.pop(name)
    elif kind == 1:
        columns[name] = [box.rng.choice(("text", "", "/etc/passwd"))] * len(columns[name])
    elif kind == 2 and name == "label":
        columns[name] = [box.rng.choice((0, 1, -1, 10**9, 2**40, None)) for _ in columns[name]]
    elif kind == 3:
        features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        metadata = {"huggingface": box.hostile.as_json(box.hostile.changed_json(features))}
    else:
        columns[name] = [box.rng.choice((None, value)) for value in columns[name]]
        if name == "image":
            columns[name] = [
                {"bytes": _hostile_image(box), "path": box.rng.choice(("/etc/passwd", "../x", None))}
                for _ in columns[name]
            ]
    try:
        changed = pa.table(columns).replace_schema_metadata(metadata)
        parquet.write_table(changed, file)
    except (pa.ArrowException, OverflowError, UnicodeError):
        file.write_bytes(b"PAR1")


@target(40)
def class_folders(box: Box) -> Call:
    folder = box.copied("classes")
    for _ in range(box.rng.randrange(1, 3)):
        _changed_folder(box, folder)
    size, loading = box.rng.choice(((None, "auto"), (8, "stream"), (8, "memory")))

    def call() -> None:
        images = load_dataset(folder, size, loading).train
        for index in range(len(images)):
            images[index]

    return call


@target(30)
def pairs_of_images_and_masks(box: Box) -> Call:
    folder = box.copied("pairs")
    for _ in range(box.rng.randrange(1, 3)):
        _changed_folder(box, folder)
    if box.rng.random() < 0.4:
        (folder / "classes.txt").write_bytes(box.hostile.changed_bytes(b"ground\nhouse\n"))
    options = box.hostile.options(["ignore_index", "foreground", "class_names", "crop_size"], 1)
    return lambda: load_pairs(folder, **options)


def _changed_folder(box: Box, folder: Path) -> None:
    """Spoil, remove, rename or add a file or folder somewhere below."""
    paths = sorted(folder.rglob("*"))
    if not paths:
        return
    path = box.rng.choice(paths)
    kind = box.rng.randrange(6)
    if kind < 2 and path.is_file():
        path.write_bytes(_hostile_image(box))
    elif kind == 2:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif kind == 3:
        path.rename(
            path.with_name(box.rng.choice(("é ü", "<script>alert(1)<|script>", "-o", "$(id)", "a\nb", "x" * 200)))
        )
    elif kind == 4 and path.is_dir():
        (path / box.rng.choice(("x.png", "y.txt", "z.gif"))).write_bytes(_hostile_image(box))
    elif path.is_file():
        path.unlink()
        path.symlink_to(box.rng.choice(("/nowhere", "/dev/zero", ".")))


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
    return lambda: _everything(predict(file, [picture_file]))


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
        entries[name] = _evil_weights(box)
    elif kind == 1:
        name = box.rng.choice((
            "archive/data/weights/model.pt",
            "archive/data/constants/model.pt",
            "archive/data/aotinductor/model/x.so",
        ))
        entries[name] = _evil_weights(box)
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
            entries[f"archive/data/constants/{meta['path_name']}"] = _evil_weights(box)
        entries[name] = json.dumps(config).encode()
    else:
        entries[name] = box.hostile.changed_bytes(entries[name])
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
