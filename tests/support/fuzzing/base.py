"""Good files, made once, that the fuzzer corrupts: runs, exported files, weights, images, tables, folders of images."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image

import gatewise as gw
from gatewise.exporting import export_run
from gatewise.training import Recipe, train
from support.few_digits import first_digits

TINY = "resnet20_wider:parameters=3000"
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "HSV")


def make(folder: Path, *, exported: bool) -> None:
    """Write all good files; those of `gatewise export`, which take half a minute, only if `exported`."""
    folder.mkdir(parents=True, exist_ok=True)
    _images(folder / "images")
    _tables(folder)
    _folders(folder)
    for name, gate in (("run", "gct@inner"), ("gater", "gaternet:sites=residual,budget=0.5")):
        recipe = Recipe(model=TINY, gate=gate, epochs=1, batch_size=32, precision="fp32", keep_checkpoint=True)
        train(recipe, folder / name, dataset=first_digits())
        if name == "gater" and exported:
            export_run(folder / name, folder / "net.onnx", images=4)
    net = gw.make_model(f"{TINY}+gct@inner", in_chans=1)
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, folder / "weights.pt")
    torch.save(gw.make_model(TINY).state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)


def picture(mode: str, size: tuple[int, int] = (9, 7)) -> Image.Image:
    """Return a small image of a mode with some structure in it."""
    ramp = Image.linear_gradient("L").resize(size)
    if mode in {"I;16", "I", "F"}:
        return (
            ramp.convert("I").point(lambda value: value * 200).convert(mode) if mode == "I;16" else ramp.convert(mode)
        )
    if mode in {"LAB", "HSV"}:
        return Image.merge(mode, (ramp, ramp, ramp))
    return ramp.convert("RGB").convert(mode) if mode != "LA" else ramp.convert("LA")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes | None:
    """Return an image's file, or None where the format does not take this mode."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    except (OSError, ValueError, KeyError):
        return None
    return buffer.getvalue()


def _images(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for form in FORMATS:
        for mode in MODES:
            if content := encoded(picture(mode), form):
                (folder / f"{form}-{mode.replace(';', '_')}.{form.lower()}").write_bytes(content)
    frames = [picture("RGB"), picture("L").convert("RGB")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        if content := encoded(frames[0], form, save_all=True, append_images=frames[1:]):
            (folder / f"{form}-animated.{form.lower()}").write_bytes(content)
    for orientation in range(9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        (folder / f"turned-{orientation}.jpeg").write_bytes(encoded(picture("RGB"), "JPEG", exif=exif) or b"")


def _tables(folder: Path) -> None:
    for name, columns in (
        ("table", {"image": _cells("RGB"), "label": [0, 1] * 3}),
        ("masks", {"image": _cells("RGB"), "mask": _cells("1")}),
    ):
        table = pa.table(columns)
        features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        (folder / name).mkdir(exist_ok=True)
        for split in ("train", "validation"):
            pyarrow.parquet.write_table(table, folder / name / f"{split}-0.parquet")


def _cells(mode: str) -> list[dict[str, Any]]:
    return [{"bytes": encoded(picture(mode, (8, 8)), "PNG"), "path": f"{row}.png"} for row in range(6)]


def _folders(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for number in range(2):
                file = folder / "classes" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(picture("RGB", (8, 8)), "PNG") or b"")
        for kind, mode in (("images", "RGB"), ("masks", "1")):
            for number in range(3):
                file = folder / "pairs" / split / kind / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(picture(mode, (8, 8)), "PNG") or b"")
    (folder / "pairs" / "classes.txt").write_text("ground\nhouse\n")
