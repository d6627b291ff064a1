"""Calls of a module that torch.fx records as one node."""

# pyright: basic

from typing import Any

from torch import fx, nn


def call_as_node(module: nn.Module, x: Any) -> Any:
    """Call `module` while torch.fx traces, and record it as one node, as torch.fx does with the layers of torch.nn.

    `x` is a `torch.fx.Proxy`. Tools with a tracer of their own, such as torchvision's feature extractor, get the node
    under the module's path.

    >>> class Twice(nn.Module):
    ...     def forward(self, x):
    ...         return call_as_node(self.layer, x) if isinstance(x, fx.Proxy) else self.layer(x)
    >>> net = Twice()
    >>> net.layer = nn.Sequential(nn.ReLU())  # torch.fx would trace into it
    >>> [node.target for node in fx.symbolic_trace(net).graph.nodes]
    ['x', 'layer', 'output']
    """
    tracer = x.tracer
    if not isinstance(tracer, fx.Tracer):  # such as that of a transformation, which knows no modules
        return module(x)

    def record(x: Any) -> Any:
        return tracer.create_proxy("call_module", tracer.path_of_module(module), (x,), {})

    return tracer.call_module(module, record, (x,), {})
