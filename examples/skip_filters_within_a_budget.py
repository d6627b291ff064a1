"""Train a network to use half of its filters in your own loop, and then skip the other filters.

    python examples/skip_filters_within_a_budget.py [--smoke]

A gater is a small network that looks at each handwritten digit and opens filters of a ResNet-20. The budget is half
of the filters' multiply-adds. `compact` removes the filters that no image opens, and `skip_closed_filters` computes
only the open filters of each image. The logits do not change. This takes about half a minute. --smoke trains for
seconds on 128 digits, which is too short to meet the budget. Skipping saves no time for such a small network and such
small images: see docs/execution.md.
"""

import sys

import torch
from torch import nn

import gatewise as gw
from gatewise.data import Augmentation, Batches, Images, load_dataset

SMOKE = "--smoke" in sys.argv
EPOCHS = 20

dataset = load_dataset("digits")
train_images = Images(dataset.train.pixels[:128], dataset.train.labels[:128]) if SMOKE else dataset.train
mean, std = dataset.statistics()
train_batches = Batches(train_images, 64, mean, std)
images, labels = next(Batches(dataset.validation, 500, mean, std).evaluation())

torch.manual_seed(0)
backbone = gw.make_model("resnet20", num_classes=10, in_chans=1)
net = gw.GaterNet(backbone, gater="light", budget=0.5, head_norm=True, image_size=(8, 8))
net.schedule(steps=EPOCHS * train_batches.steps)

optimizer = torch.optim.SGD(gw.parameter_groups(net, weight_decay=5e-4), lr=0.05, momentum=0.9)
for epoch in range(EPOCHS):
    for batch, classes in train_batches.training(epoch, seed=0, augmentation=Augmentation(padding=1)):
        loss = nn.functional.cross_entropy(net(batch), classes) + gw.gate_loss(net)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

net.eval()
with torch.no_grad():
    logits, gates = net.forward_with_gates(images)
print(f"accuracy:        {(logits.argmax(1) == labels).float().mean():.4f}")
print(f"open:            {net.open_fraction(gates).mean():.3f} of the gated filters' work")
print(f"multiply-adds:   {net.executed_macs(gates).mean() / 1e6:.2f} M of {net.dense_macs / 1e6:.2f} M")

small = gw.compact(net, [images]).eval()  # in practice, a DataLoader of training images
print(f"compaction:      {str(small.compaction).splitlines()[0]}")
fast = gw.skip_closed_filters(net)
with torch.no_grad():
    for name, other in (("compacted", small(images)), ("skipping", fast(images))):
        print(f"{name + ':':17}logits differ by {(other - logits).abs().max() / logits.abs().max():.1e} of the largest")
