"""Runs the gates' autograd operations on the Triton kernels, in the interpreter; prints how many were launched."""

import importlib
import os

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch

import gatewise as gw
from gatewise.gates.kernels import attention_pool, channels, gated_channel_transform
from gatewise.gates.kernels.triton import maps
from support.gate_cases import perturbed

launches: list[object] = []
launch = maps.launch


def counted(kernel, *arguments, **constants) -> None:
    launches.append(kernel)
    launch(kernel, *arguments, **constants)


def on_triton(device: torch.device, name: str):
    module = importlib.import_module(f"gatewise.gates.kernels.triton.{name}")
    module.launch = counted
    return module


def main() -> None:
    for module in (attention_pool, channels, gated_channel_transform):
        module.kernels_for = on_triton
    for name, options in (
        ("gct", {}),
        ("gct", {"mode": "l1", "activation": "elu"}),
        ("se", {}),
        ("gc", {}),
        ("gc", {"fusion": "both"}),
        ("gc", {"fusion": "multiply", "pooling": "average"}),
    ):
        exact = perturbed(gw.make_gate(name, 6, backend="reference", dtype=torch.float64, **options))
        gate = gw.make_gate(name, 6, backend="fused", **options)
        gate.load_state_dict(exact.state_dict())
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 6, 5, 7).contiguous(memory_format=layout)
            grad_output, before = torch.randn_like(x), len(launches)
            results = []
            for which, like in ((gate, x), (exact, x.double())):
                like.requires_grad_()
                y = which(like)
                wanted = [like, *(p for key, p in which.named_parameters() if key != "conv_mask.bias")]
                results.append([y, *torch.autograd.grad(y, wanted, grad_output.to(like.dtype))])
            for own, true in zip(*results, strict=True):
                torch.testing.assert_close(own.double(), true, rtol=1e-3, atol=1e-4)
            assert len(launches) - before >= 2, (name, options)
            with torch.no_grad():
                torch.testing.assert_close(gate(x).double(), results[1][0], rtol=1e-3, atol=1e-4)
    print(f"{len(launches)} launches")


if __name__ == "__main__":
    main()
