"""Train a small GaterNet through Accelerate, on this process's share of each batch, and save its weights in a folder.

python gater_in_processes.py FOLDER
torchrun --standalone --nproc-per-node 2 gater_in_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

import gatewise as gw
from gatewise.insertion.tuning import set_total_steps

STEPS = 20


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), *pooled, nn.Linear(8, 4))
    gater = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *pooled, nn.Linear(4, 8))
    net = gw.GaterNet(backbone, gater=gater, estimator="straight_through", budget=0.5, image_size=(8, 8))
    set_total_steps(net, STEPS)
    images, labels = torch.randn(STEPS, 8, 3, 8, 8), torch.randint(4, (STEPS, 8))
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(gw.parameter_groups(net), lr=0.1))
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    for step in range(STEPS):
        loss = nn.functional.cross_entropy(model(images[step, share]), labels[step, share]) + gw.gate_loss(model)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    save_file(net.state_dict(), folder / f"rank_{accelerator.process_index}_of_{accelerator.num_processes}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
