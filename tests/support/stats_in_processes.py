"""Record the gates of a network over this process's share of some images, and save what all processes counted.

python stats_in_processes.py FOLDER
torchrun --standalone --nproc-per-node 2 stats_in_processes.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed, nn

import gatewise as gw


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        distributed.init_process_group("gloo")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    gw.insert_gates(net, "gct")
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    images, labels = torch.randn(30, 3, 8, 8), torch.arange(30) % 3
    stats = gw.analysis.GateStats(net, classes=3)
    share = slice(rank, None, processes)
    with gw.analysis.GateRecorder(net) as recorder, torch.no_grad():
        for batch, own in zip(images[share].split(4), labels[share].split(4), strict=True):
            net(batch)
            stats.update(recorder.take(), own)
    numbers = {
        f"{path}/{name}": torch.as_tensor(getattr(found, name))
        for path, found in stats.summaries().items()
        for name in ("mean", "deviation", "by_class", "histogram", "between_images", "between_classes", "competition")
    }
    numbers |= {f"computed/{name}": value for name, value in stats.compute().items()}
    numbers["own"] = torch.tensor(len(images[share]))
    save_file({name: value.contiguous() for name, value in numbers.items()}, folder / f"{rank}_of_{processes}")
    if processes > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
