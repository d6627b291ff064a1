"""Train a ResNet-20 on CIFAR-10 with a plain script, as a baseline for `gatewise train`.

    python benchmarks/plain_cifar10.py FOLDER [EPOCHS]

FOLDER contains train.parquet and validation.parquet. bf16, batch size 128, SGD with Nesterov momentum, one-cycle to
0.2, weight decay 5e-4, crop with padding 4 and flip. Only the network comes from gatewise.
"""

import io
import sys
import time

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

import gatewise as gw

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)


def load(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    table = pq.read_table(path)
    images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["img"].to_pylist()]
    pixels = torch.stack([(pil_to_tensor(image) / 255 - MEAN) / STD for image in images])
    return pixels, torch.tensor(table["label"].to_pylist())


def augment(images: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(images, (4, 4, 4, 4))
    tops, lefts = torch.randint(0, 9, (2, len(images))).tolist()
    crops = [image[:, t : t + 32, x : x + 32] for image, t, x in zip(padded, tops, lefts, strict=True)]
    return torch.stack([crop.flip(2) if torch.rand(()) < 0.5 else crop for crop in crops])


def main(folder: str, epochs: int) -> None:
    torch.manual_seed(0)
    train_x, train_y = load(f"{folder}/train.parquet")
    test_x, test_y = load(f"{folder}/validation.parquet")
    model = gw.make_model("resnet20")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(train_y) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, epochs * steps)
    for epoch in range(epochs):
        model.train()
        started, order = time.perf_counter(), torch.randperm(len(train_y))
        for step in range(steps):
            index = order[step * 128 : (step + 1) * 128]
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(augment(train_x[index])), train_y[index])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        speed = steps * 128 / (time.perf_counter() - started)
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            correct = sum(
                (model(x).argmax(1) == y).sum() for x, y in zip(test_x.split(500), test_y.split(500), strict=True)
            )
        print(f"epoch {epoch + 1}: accuracy {100 * correct / len(test_y):.2f} %, {speed:.0f} images/s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 15)
