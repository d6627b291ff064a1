"""Means over all positions in ONNX files."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from gatewise.exporting.formats.onnx import Onnx
from gatewise.exporting.program import exported_program


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "pooled"),
    [
        (lambda x: x.mean((2, 3), keepdim=True), True),
        (lambda x: x.mean((-2, -1), keepdim=True), True),
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 1), True),
        (lambda x: x.mean((2, 3)), False),
        (lambda x: x.mean((1, 2), keepdim=True), False),
        (lambda x: x.mean(3, keepdim=True), False),
        (lambda x: x.flatten(2).mean((1, 2), keepdim=True), False),
    ],
)
def test_means_over_positions_are_pooled_globally(function: Callable[[Tensor], Tensor], *, pooled: bool) -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    content = Onnx().write(exported_program(Applied(function), x, free_size=False), {}, "logits")
    graph = onnx.load_from_string(content).graph
    kinds = {node.op_type for node in graph.node}
    assert {constant.name for constant in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert ("GlobalAveragePool" in kinds) == pooled
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": x.numpy()})
    np.testing.assert_allclose(found, function(x).numpy(), rtol=1e-5, atol=1e-6)
