"""Insert gates into a trained network, and fine-tune them with the Trainer of transformers.

    python examples/tune_gates_with_hugging_face.py [--smoke]

The script trains a small ResNet on handwritten digits and inserts gct, which does not change the output. Then it trains
the gates alone for one epoch, and everything for another epoch; the callback `GateTuning` freezes, thaws, and logs how
far the gates are from the identity. This takes about half a minute on two cores. --smoke only checks that the script
runs: it takes seconds and learns little. It needs the package transformers.
"""

import sys
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

import gatewise as gw
from gatewise.data import load_dataset
from gatewise.integrations.transformers import GateTuning

IMAGES = 128 if "--smoke" in sys.argv else 1_000_000

dataset = load_dataset("digits")
mean, std = dataset.statistics()


def examples(images: Any) -> list[dict[str, Tensor]]:
    """Return normalised images and their labels."""
    pixels = (images.pixels[:IMAGES].float() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return [{"pixel_values": image, "labels": label} for image, label in zip(pixels, images.labels, strict=False)]


class Classifier(nn.Module):
    """A network in the form that the trainer expects: it has names for its inputs and outputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # noqa: ARG002
        return {"logits": self.net(pixel_values)}


def criterion(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """Return the mean over all images of a step, which may consist of several batches."""
    total = cross_entropy(outputs["logits"], labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def fit(net: nn.Module, epochs: int, lr: float, *callbacks: Any) -> dict[str, float]:
    """Train the network and return what the last evaluation logged."""
    model = Classifier(net)
    optimizer = torch.optim.SGD(gw.parameter_groups(model, weight_decay=5e-4), lr=lr, momentum=0.9)
    settings = {"eval_strategy": "epoch", "save_strategy": "no", "lr_scheduler_type": "constant", "disable_tqdm": True}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(tempfile.mkdtemp(), num_train_epochs=epochs, per_device_train_batch_size=64, **settings),
        train_dataset=examples(dataset.train),  # type: ignore[arg-type]
        eval_dataset=examples(dataset.validation),  # type: ignore[arg-type]
        compute_loss_func=gw.GateLoss(criterion, model),
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
        optimizers=(optimizer, None),  # type: ignore[arg-type]
        callbacks=list(callbacks),
    )
    trainer.train()
    return next(row for row in reversed(trainer.state.log_history) if "eval_loss" in row)


net = gw.make_model("resnet20", num_classes=10, in_chans=1, seed=0)
print(f"trained:           {fit(net, 4, 0.05)['eval_accuracy']:.4f}")

gw.insert_gates(net, "gct")
logged = fit(net, 2, 0.01, GateTuning(gate_epochs=1))
shares = [value for name, value in logged.items() if name.endswith("/near_identity")]
print(f"everything tuned:  {logged['eval_accuracy']:.4f}")
print(f"mean of {len(shares)} gates: {100 * sum(shares) / len(shares):.1f}% near the identity")
