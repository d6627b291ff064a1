"""Targets that read images, tables and folders of images."""

import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from gatewise.data import load_dataset
from gatewise.data.load import load_pairs
from gatewise.data.masks import decode_mask
from gatewise.data.pixel_format import RGB
from gatewise.exporting.prediction import predict
from support.fuzzing.base import FORMATS, MODES, encoded, picture
from support.fuzzing.box import Box
from support.fuzzing.runs import everything
from support.fuzzing.target import Call, target


def hostile_image(box: Box) -> bytes:
    """Return an image of unusual form, or a file that is not an image."""
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
    """Return a PNG whose header gives a huge size and that has almost no data."""

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
    content = hostile_image(box)
    call = RGB.decode if box.rng.random() < 0.8 else decode_mask
    return lambda: call("file", content)


@target(30)
def predicted_image(box: Box) -> Call:
    run = box.base / "run"
    file = box.inputs / box.rng.choice(("a b.png", "é.jpg", "x.gif", "no suffix", "猫.txt", "-.png"))
    file.write_bytes(hostile_image(box))
    paths: list[Any] = [file] if box.rng.random() < 0.8 else [box.hostile.word().strip("/.~") or "x"]  # no whole disk
    top = 5 if box.rng.random() < 0.8 else box.hostile.value()
    return lambda: everything(predict(run, paths, top_k=top))


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
    """Replace a column, a few of its cells, or the class names in the metadata."""
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
                {"bytes": hostile_image(box), "path": box.rng.choice(("/etc/passwd", "../x", None))}
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
        changed_folder(box, folder)
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
        changed_folder(box, folder)
    if box.rng.random() < 0.4:
        (folder / "classes.txt").write_bytes(box.hostile.changed_bytes(b"ground\nhouse\n"))
    options = box.hostile.options(["ignore_index", "foreground", "class_names", "crop_size"], 1)
    return lambda: load_pairs(folder, **options)


def changed_folder(box: Box, folder: Path) -> None:
    """Corrupt, remove, rename or add a file or folder anywhere below."""
    paths = sorted(folder.rglob("*"))
    if not paths:
        return
    path = box.rng.choice(paths)
    kind = box.rng.randrange(6)
    if kind < 2 and path.is_file():
        path.write_bytes(hostile_image(box))
    elif kind == 2:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif kind == 3:
        path.rename(
            path.with_name(box.rng.choice(("é ü", "<script>alert(1)<|script>", "-o", "$(id)", "a\nb", "x" * 200)))
        )
    elif kind == 4 and path.is_dir():
        (path / box.rng.choice(("x.png", "y.txt", "z.gif"))).write_bytes(hostile_image(box))
    elif path.is_file():
        path.unlink()
        path.symlink_to(box.rng.choice(("/nowhere", "/dev/zero", ".")))
