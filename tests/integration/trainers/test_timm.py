"""timm's training task with `GateLoss` as its criterion; tests/unit/integrations has timm's train.py."""

from typing import Any

import pytest
import torch
from torch import nn

import gatewise as gw
from support.trained_elsewhere import BATCHES, EPOCHS, budget_net, changed, gated_net, loader, own_loop, sgd, snapshot

timm_task = pytest.importorskip("timm.task")


@pytest.mark.situation("The criterion is that of another trainer.")
@pytest.mark.parametrize("make", [gated_net, budget_net])
def test_task_equals_own_loop(make: Any) -> None:
    net = make()
    task = timm_task.ClassificationTask(net, criterion=gw.GateLoss(nn.CrossEntropyLoss(), net))
    assert set(task.state_dict()) == {f"trainable_module.{name}" for name in net.state_dict()}
    task.setup_ema(decay=0.5)
    optimizer, losses = sgd(net), []
    if isinstance(net, gw.GaterNet):
        net.schedule(EPOCHS * BATCHES)
    for _ in range(EPOCHS):
        task.train()
        for images, labels in loader():
            torch.manual_seed(len(losses))
            loss = task(images, labels)["loss"]
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            task.update_ema()
    own = make()
    assert losses == own_loop(own, 0), "the loss contains that of the gates"
    assert changed(snapshot(net), snapshot(own)) == set()
