"""Split the classes of a data set further, to ask with more variety whether selecting filters can pay.

    python benchmarks/finer_classes.py RUN --parts 5 --out FOLDER
    gatewise train --data FOLDER --model resnet20 --epochs 8 --out FINE
    python benchmarks/oracle_routes.py FINE --data FOLDER --out FILE.json

RUN is a finished plain run. K-means divides the training images of each class into parts by what the layer before the
classifier computes; the images of other splits belong to the nearest centre of their class. FOLDER has a parquet file
with PNG images for each split of RUN, and labels such as "cat 3". The parts are what a network can separate, not what a
person would name: they say how variety changes the answer, not how well a network knows fine classes.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor, nn

from gatewise.training.runs import Run

_SPLITS = ("train", "validation", "test")


@torch.no_grad()
def features(run: Run) -> tuple[Tensor, Tensor]:
    """Return what the classifier of a run reads for its images, (N, features), and their labels, (N,)."""
    *_, classifier = (layer for layer in run.model.modules() if isinstance(layer, nn.Linear))
    seen: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu()))
    labels: list[Tensor] = []
    for images, batch in run.batches():
        run.model(images)
        labels.append(batch.cpu())
    hook.remove()
    return torch.cat(seen), torch.cat(labels)


def fit(found: Tensor, labels: Tensor, parts: int) -> list[KMeans]:
    """Return the centres of each class."""
    return [
        KMeans(parts, n_init=4, random_state=0).fit(found[labels == label].numpy())
        for label in range(int(labels.max()) + 1)
    ]


def parts_of(found: Tensor, labels: Tensor, centres: list[KMeans]) -> Tensor:
    """Return the number of the part of its class for each image, (N,)."""
    part = torch.zeros_like(labels)
    for label, own in enumerate(centres):
        rows = (labels == label).nonzero().flatten()
        if len(rows):
            part[rows] = torch.from_numpy(own.predict(found[rows].numpy())).to(part)
    return part


def write(file: Path, images: Any, labels: Tensor, names: list[str]) -> None:
    """Write images and labels as a parquet table, with the names of the classes as the library `datasets` has them."""
    encoded: list[bytes] = []
    for index in range(len(labels)):
        buffer = io.BytesIO()
        picture: Image.Image = images.picture(index)
        picture.save(buffer, "png")
        encoded.append(buffer.getvalue())
    table = pyarrow.table({"image": [{"bytes": each, "path": None} for each in encoded], "label": labels.tolist()})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run = Run.open(args.run).checked()
    run.check_has_images()
    args.out.mkdir(parents=True, exist_ok=True)
    names = [f"{name} {part}" for name in run.classes for part in range(args.parts)]
    centres: list[KMeans] = []
    for split in _SPLITS:  # train first: it makes the centres
        of_split: Any = run.of(split)  # type: ignore[arg-type]
        if not of_split.images:
            continue
        found, labels = features(of_split)
        centres = centres or fit(found, labels, args.parts)
        fine = args.parts * labels + parts_of(found, labels, centres)
        write(args.out / f"{split}.parquet", of_split.images, fine, names)
        print(f"{split}: {len(fine):,} images, {len(fine.unique())} classes", flush=True)


if __name__ == "__main__":
    main()
