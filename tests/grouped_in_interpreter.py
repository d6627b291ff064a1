"""Runs the Triton kernel in its interpreter against the definition; prints how many cases and launches there were."""

import itertools
import os

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch
from random_networks import gater_net, images
from torch.nn import functional as F

import gatewise as gw
from gatewise.kernels import grouped_convolution as module
from gatewise.kernels.grouped_convolution import Groups, grouped_convolution

launches: list[object] = []
kernel = module._kernel


class Counted:
    def __getitem__(self, grid):
        launches.append(grid)
        return kernel[grid]


KERNELS = [((1, 1), (1, 1), (0, 0), (1, 1)), ((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)),
           ((3, 1), (1, 2), (2, 0), (2, 1)), ((1, 1), (2, 2), (0, 0), (1, 1))]  # fmt: skip
SIZES = [(3, 5, 7), (1, 9, 9), (2, 1, 1)]
GROUPS = [((24, 8), (16, 16)), ((12, 3), (20, 5)), ((7, None), (8, 1)), ((32, 32), (6, None))]
NETWORKS = [
    ["basic", "bottleneck"],
    ["inverted"],
    ["in_branch", "parametric"],
    ["grouped", "basic"],
    ["ChannelsLast"],
]


def main() -> None:
    module._kernel = Counted()
    generator = torch.Generator().manual_seed(0)
    cases = 0
    for (window, stride, padding, dilation), (n, h, w), ((c, gi), (k, go)) in itertools.product(KERNELS, SIZES, GROUPS):
        if h + 2 * padding[0] < dilation[0] * (window[0] - 1) + 1:
            continue
        for dtype in (torch.float32, torch.float16):
            x = torch.randn(n, c, h, w, generator=generator).to(dtype)
            weight = torch.randn(*window, c, k, generator=generator).to(dtype)
            bias = torch.randn(k, generator=generator).to(dtype) if c % 2 == 0 else None
            ins = (torch.rand(n, c // gi, generator=generator) < 0.5).float() if gi else None
            outs = (torch.rand(n, k // go, generator=generator) < 0.5).float() if go else None
            if outs is not None:
                outs[0] = 0  # an image without an open group
            came = grouped_convolution(
                x,
                weight,
                bias,
                None if ins is None else Groups.of(ins, gi),
                None if outs is None else Groups.of(outs, go),
                stride,
                padding,
                dilation,
            )
            masked = x.double() if ins is None else x.double() * ins.repeat_interleave(gi, 1)[:, :, None, None].double()
            full = F.conv2d(
                masked,
                weight.permute(3, 2, 0, 1).double(),
                None if bias is None else bias.double(),
                stride,
                padding,
                dilation,
            )
            expected = full if outs is None else full * outs.repeat_interleave(go, 1)[:, :, None, None].double()
            error = (came.double() - expected).abs().max()
            budget = (
                2 * torch.finfo(dtype).eps * max(1.0, float(expected.abs().max())) * (window[0] * window[1] * c) ** 0.5
            )
            assert came.shape == expected.shape
            assert came.dtype == dtype
            assert error <= budget, (window, stride, (n, h, w), c, k, gi, go, dtype, float(error), budget)
            cases += 1
    assert len(launches) == cases

    for blocks, sites, gater in itertools.product(NETWORKS, ("inner", "residual"), ("scripted", "local")):
        options = {} if gater == "scripted" else {"gater": "local"}
        net = gater_net(blocks, 12, letters="?", sites=sites, group_size=2, **options)
        for decider in net.gater if net.is_local else []:
            torch.nn.init.normal_(decider.head.fc2.weight, std=2.0)
        before = len(launches)
        fast = gw.skip_closed_filters(net, "skip", backend="triton")
        output, gates = fast.forward_with_gates(images(3))
        assert torch.equal(gates, net.forward_with_gates(images(3))[1])
        torch.testing.assert_close(output, net(images(3)), rtol=1e-4, atol=1e-5)
        if blocks[0] != "ChannelsLast" and not fast.skipped:
            assert len(launches) > before, (blocks, sites)
        cases += 1
    print(f"{cases} cases")


if __name__ == "__main__":
    main()
