"""Runs the Triton kernels of the gates in the interpreter against their definitions; prints how many cases there were.

A result may be twice as far from the definition in float64 as plain PyTorch is in the result's own type, and further by
one rounding error of the largest value for half types, four for float32, 64 for float64 (whose reference is no better),
and where numbers cancel or are exponentials by the rounding of what they are made of. Every launch sees its tensors
amid NaN: what it reads outside of them spoils the result, what it writes there is found. Every case says which kernels
it must launch.

    PYTHONPATH=tests python -m support.gates_in_interpreter [--all]  every size, type, way and option with each other
"""

import itertools
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch
from torch import Tensor
from torch.nn import functional as F

from gatewise.gates.functional import attention_pool as pool
from gatewise.gates.functional import attention_weights
from gatewise.gates.gated_channel_transform import gated_channel_transform
from gatewise.gates.global_context import global_context
from gatewise.gates.kernels.triton import attention_pool, channel_affine, maps
from gatewise.gates.kernels.triton import gated_channel_transform as gct

MODULES = {"gct": gct, "pool": attention_pool, "affine": channel_affine}
SIZES = [(1, 1, (1,)), (2, 3, (5,)), (3, 7, (7, 7)), (1, 33, (3, 43)), (2, 1, (49,)), (1, 3, (5, 5, 5)),
         (2, 33, (1, 1)), (2, 16, (4, 4))]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = ["contiguous", "channels_last", "slice", "channels_last slice", "every other"]
UPSTREAMS = ["contiguous", "channels_last", "slice", "expanded"]
ON_CHIP, SMALL = "on chip", {"TILE": 256, "LONGEST_RUN": 32, "WIDEST_RUN": 16}
WAYS = [ON_CHIP, "tiles", "chunks", "rounds"]  # chunks: many programs for a sum; rounds: one program for many tiles
GATES = list(itertools.product(("l2", "l1"), ("tanh", "sigmoid", "relu", "elu")))
FUSIONS = ["add", "multiply", "both"]
MARGIN = 4096
ROUNDINGS = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 4, torch.float64: 64}

launched: Counter[str] = Counter()
seen: set[str] = set()
generator = torch.Generator().manual_seed(0)


class Guarded:
    """A kernel that counts its launches and gets its tensors amid NaN."""

    def __init__(self, name: str, kernel: Any) -> None:
        self.name, self.kernel = name, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            launched[self.name] += 1
            values = dict(zip(self.kernel.arg_names, arguments, strict=False))
            seen.update(f"{self.name} {name}" for name in ("chunks", "rounds") if values.get(name, 1) > 1)
            wholes: dict[int, tuple[Tensor, Tensor]] = {}
            given = [self.amid_nan(value, wholes) if isinstance(value, Tensor) else value for value in arguments]
            self.kernel[grid](*given, **constants)
            for original, whole in wholes.values():
                assert whole[:MARGIN].isnan().all(), f"{self.name} wrote before a tensor"
                assert whole[MARGIN + len(original) :].isnan().all(), f"{self.name} wrote past the end of a tensor"
                original.copy_(whole[MARGIN : MARGIN + len(original)])

        return launch

    @staticmethod
    def amid_nan(tensor: Tensor, wholes: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in wholes:
            original = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            whole = torch.full((len(original) + 2 * MARGIN,), float("nan"), dtype=tensor.dtype)
            whole[MARGIN : MARGIN + len(original)] = original
            wholes[place] = original, whole
        return wholes[place][1].as_strided(tensor.shape, tensor.stride(), MARGIN + tensor.storage_offset())


def drawn(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> Tensor:
    """Return normal numbers, or, of an expanded tensor, one for each sample."""
    if layout == "expanded":
        return torch.randn(shape[:1], generator=generator).to(dtype)[(...,) + (None,) * (len(shape) - 1)].expand(shape)
    sliced = (shape[0], shape[1] + 2, *shape[2:]) if layout.endswith("slice") else shape
    x = torch.randn(sliced, generator=generator).to(dtype)
    if layout.startswith("channels_last") and len(shape) > 3:
        x = x.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    if layout == "every other":
        return torch.stack((x, torch.full_like(x, float("nan"))), 2).flatten(1, 2)[:, ::2]
    if layout.endswith("slice"):
        x[:, 0] = x[:, -1] = float("nan")
        return x[:, 1:-1]
    return x


def hold(what: str, actual: Tensor, exact: Tensor, plain: Tensor, more: float = 0.0) -> None:
    """Hold a result against the error of plain PyTorch, some roundings and what `more` the case has a reason for."""
    actual, exact, plain = actual.detach(), exact.detach(), plain.detach()
    assert actual.shape == exact.shape, (what, actual.shape, exact.shape)
    if not exact.numel():
        return
    error, others = ((each.double() - exact).abs().max().item() for each in (actual, plain))
    budget = 2 * others + ROUNDINGS[actual.dtype] * torch.finfo(actual.dtype).eps * exact.abs().max().item() + more
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g}, of plain PyTorch {others:.3g}"


def same_layout(y: Tensor, x: Tensor) -> bool:
    """Tell whether y has the type of x and, up to gaps, its order of axes."""
    steps = zip(x.shape, y.stride(), torch.empty_like(x).stride(), strict=True)
    return y.dtype == x.dtype and all(own == others for size, own, others in steps if size > 1)


def expect(**names: int) -> None:
    """Hold the launches since the last call against a count for each kernel."""
    actual = dict(launched)
    launched.clear()
    assert actual == names, f"launched {actual}, expected {names}"


def choose(way: str) -> None:
    """Set the constants that lead to one way of working."""
    small = way in {"chunks", "rounds"}
    for name, value in SMALL.items():
        setattr(maps, name, value if small else DEFAULTS[name])
    maps.PROGRAMS = {"chunks": 64, "rounds": 2}.get(way, DEFAULTS["PROGRAMS"])
    gct.ON_CHIP = DEFAULTS["ON_CHIP"] if way == ON_CHIP else 0
    attention_pool.ALL_CHANNELS_TILE = 256 if small else DEFAULTS["ALL_CHANNELS_TILE"]


DEFAULTS = {name: getattr(maps, name) for name in (*SMALL, "PROGRAMS")}
DEFAULTS |= {"ON_CHIP": gct.ON_CHIP, "ALL_CHANNELS_TILE": attention_pool.ALL_CHANNELS_TILE}


def gct_case(
    x: Tensor, grad_output: Tensor, way: str, mode: str, activation: str, parameters: Tensor, eps: float
) -> None:
    """Hold forward and backward against the definition."""
    settings: dict[str, Any] = {"mode": mode, "eps": eps, "activation": activation}

    def defined(dtype: torch.dtype, parameter_dtype: torch.dtype) -> tuple[Tensor, ...]:
        y_of = x.detach().to(dtype).requires_grad_()
        leaves = [each.to(parameter_dtype).requires_grad_() for each in parameters]
        shaped = [each.view(1, -1, *(1,) * (x.dim() - 2)) for each in leaves]
        y = gated_channel_transform(y_of, *shaped, **settings)
        return y, *torch.autograd.grad(y, [y_of, *leaves], grad_output.to(dtype))

    reduced = parameters.dtype
    exact, plain, plain_reduced = (
        defined(*types) for types in ((torch.float64,) * 2, (x.dtype, reduced), (reduced,) * 2)
    )
    choose(way)
    y, norms = gct.forward(x, *parameters, **settings)
    expect(
        **(
            {"gct.forward_on_chip": 1}
            if way == ON_CHIP
            else {"affine._sums": 1, "gct._factors": 1, "affine._affine": 1}
        )
    )
    dx, dparams = gct.backward(grad_output, x, norms, *parameters, **settings)
    sums = {"affine._sums": 1, "gct._gradients": 1}
    expect(**({"gct.backward_on_chip": 1} if way == ON_CHIP else {**sums, "gct._map_gradient": 1}))
    nothing, alone = gct.backward(grad_output, x, norms, *parameters, **settings, needs_map=False)
    expect(**({"gct.backward_on_chip": 1} if way == ON_CHIP else sums))
    assert nothing is None
    assert torch.equal(alone, dparams)
    assert dx is not None
    assert norms.dtype == dparams.dtype == reduced
    assert same_layout(y, x)
    assert same_layout(dx, x)
    hold("y", y, exact[0], plain[0])
    hold("dx", dx, exact[1], plain[1])
    eps_of = torch.finfo(reduced).eps  # sums over positions cancel, and so do the two terms of dalpha
    terms = (grad_output.double() * x.double()).abs().flatten(2).sum(2)
    s = (parameters[0] * norms).abs().double() + 1e-30
    u = s / (s.square().mean(1, keepdim=True).sqrt() if mode == "l2" else s.mean(1, keepdim=True))
    rounded = eps_of * torch.stack((4 * terms * u * (parameters[1] / parameters[0]).abs(), terms * u, terms)).sum(1)
    rounded[0] = rounded[0].sum()
    for i, name in enumerate(("alpha", "gamma", "beta")):
        more = rounded[i].max().item()
        hold(f"d{name}", dparams[i].sum(0), exact[2 + i], plain_reduced[2 + i], more)


def gc_case(x: Tensor, grad_output: Tensor, way: str, fusion: str, biased: bool) -> None:
    """Hold the block x * sigmoid(c) + c, or a part of it, against the definition, with all gradients."""
    reduced = torch.promote_types(x.dtype, torch.float32)
    weight = (2 * drawn((x.shape[1],), x.dtype)).to(reduced)
    bias = drawn((1,), x.dtype).to(reduced) if biased else None
    given = [weight] if bias is None else [weight, bias]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]

    def defined(dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        of, *leaves = (each.detach().to(dtype).requires_grad_() for each in (x, *given))

        def mask(x: Tensor) -> Tensor:
            return convolve(x, leaves[0].view(1, -1, *(1,) * (x.dim() - 2)), leaves[1] if biased else None)

        add, multiply = (torch.nn.Identity() if fusion in {name, "both"} else None for name in ("add", "multiply"))
        y = global_context(of, mask, add, multiply)  # type: ignore[arg-type]
        own = pool(of, mask(of))
        pooled = torch.autograd.grad(own, of, torch.ones_like(own), retain_graph=True)
        attention = attention_weights(mask(of)).flatten(1)
        return (y, *torch.autograd.grad(y, [of, *leaves], grad_output.to(dtype))), (own.flatten(1), attention, *pooled)

    (exact, exact_pool), (plain, plain_pool), (reduced_plain, reduced_pool) = map(
        defined, (torch.float64, x.dtype, reduced)
    )
    choose(way)
    context, attention = attention_pool.forward(x, weight, bias)
    expect(**{"pool._pool": 1, "pool._combine": 1})
    factors = context.sigmoid() if fusion != "add" else None
    y = channel_affine.channel_affine(x, factors, None if fusion == "multiply" else context)
    products, plainly = channel_affine.channel_products(grad_output, x)
    expect(**{"affine._affine": 1, "affine._sums": 1})
    dcontext = plainly if fusion != "multiply" else torch.zeros_like(plainly)
    if factors is not None:
        dcontext = dcontext + products * factors * (1 - factors)
    dx, dweight, dbias = attention_pool.backward(dcontext, x, attention, weight, grad_output, factors)
    expect(**{"pool.gradient_sums": 1, "pool.map_gradient": 1})
    alone, _, _ = attention_pool.backward(torch.ones_like(context), x, attention, weight)
    expect(**{"pool.gradient_sums": 1, "pool.map_gradient": 1})
    assert context.dtype == attention.dtype == dweight.dtype == dbias.dtype == reduced
    assert all(same_layout(each, x) for each in (y, dx, alone))
    # An exponential makes a relative error of the rounding of its logit, and so of everything after it.
    logit = torch.finfo(reduced).eps * (weight.view(1, -1, 1) * x.flatten(2)).abs().sum(1).max().item()
    results = {
        "context": (context, exact_pool[0], reduced_pool[0]),
        "attention": (attention, exact_pool[1], reduced_pool[1]),
        "dx of the pooling": (alone, exact_pool[2], plain_pool[2]),
        "y": (y, exact[0], plain[0]),
        "dx": (dx, exact[1], plain[1]),
        "dweight": (dweight.sum(0), exact[2], reduced_plain[2]),
    }
    wide = x.flatten(2).double()
    pulls = (dcontext.double()[:, :, None] * wide).sum(1)
    dlogits = (exact_pool[1] * (pulls - (exact_pool[1] * pulls).sum(1, keepdim=True))).abs()
    summands = 2 * (dlogits.sum(1)[:, None] * wide.abs().amax(2)).max().item()
    for name, (actual, of, theirs) in results.items():
        hold(name, actual, of, theirs, more=logit * (summands if name == "dweight" else of.abs().max().item()))
    if biased:  # a softmax knows no common offset: the gradient is what rounding leaves of a sum of these
        more = 16 * torch.finfo(reduced).eps * pulls.abs().max().item()
        hold("dbias", dbias.sum()[None], torch.zeros(1).double(), reduced_plain[3], more=more)


def combinations(everything: bool, options: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield size, type, layout, upstream, way and options: all but the two layouts, which are drawn.

    Not everything: each two of size, type and way, though not all three, and options are drawn too.
    """
    chance = random.Random(0)
    for (i, size), (j, dtype), (k, way) in itertools.product(*map(enumerate, (SIZES, DTYPES, WAYS))):
        if everything:
            for option in options:
                yield size, dtype, chance.choice(LAYOUTS), chance.choice(UPSTREAMS), way, option
        elif (i + j + k) % len(WAYS) == 0:
            yield size, dtype, chance.choice(LAYOUTS), chance.choice(UPSTREAMS), way, chance.choice(options)


def edge_cases(everything: bool) -> int:
    """Run what the grid has not: fresh gates, all-zero maps, exact zeros, a tiny eps, no samples, large logits.

    Not everything: fresh gates in both ways, others in one of them.
    """
    count = 0
    for (i, (mode, activation)), (j, way) in itertools.product(enumerate(GATES), enumerate((ON_CHIP, "tiles"))):
        maps_and_eps = [
            (drawn((2, 3, 7), torch.float32).relu(), 1e-5),
            (torch.zeros(2, 3, 5), 1e-5),
            (drawn((1, 3, 5), torch.float32) * 1e-3, 1e-30),
            (drawn((0, 3, 5), torch.float32), 1e-5),
        ]
        for k, (x, eps) in enumerate(maps_and_eps):
            for scale in (0.0, 0.5) if everything or (i + j + k) % 2 == 0 else (0.0,):
                parameters = torch.stack((torch.ones(3), *(scale * drawn((2, 3), torch.float32))))
                gct_case(x, torch.ones_like(x), way, mode, activation, parameters, eps)
                choose(way)
                y, _ = gct.forward(x, *parameters, mode=mode, eps=eps, activation=activation)
                launched.clear()
                assert scale or activation == "sigmoid" or torch.equal(y, x), "a fresh gate is the identity bit for bit"
                count += 1
    x = drawn((2, 3, 5), torch.float32)
    context, _ = attention_pool.forward(x, torch.ones(3), torch.full((1,), float("nan")))
    launched.clear()
    assert context.isnan().all(), "all that a bias can do"
    for way in WAYS:
        gc_case(5 * drawn((2, 3, 77), torch.float32), drawn((2, 3, 77), torch.float32), way, "add", True)
        gc_case(drawn((2, 3, 77), torch.float32).sort().values, drawn((2, 3, 77), torch.float32), way, "both", False)
        count += 2
    return count


def samples_far_apart() -> None:
    """Compare maps whose last sample lies after the 2^31st element with copies; that memory is never touched."""
    x = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((3, 3, 5), (2**30, 5, 1))
    x.copy_(drawn((3, 3, 5), torch.float16))
    one = torch.ones(3)
    settings: dict[str, Any] = {"mode": "l2", "eps": 1e-5, "activation": "tanh"}

    def results(x: Tensor) -> list[Tensor | None]:
        y, norms = gct.forward(x, one, one, one, **settings)
        context, attention = attention_pool.forward(x, one, None)
        gradients = gct.backward(x, x, norms, one, one, one, **settings)
        return [y, *gradients, context, *attention_pool.backward(context, x, attention, one, x)]

    for way in (ON_CHIP, "tiles"):
        choose(way)
        assert all(map(torch.equal, results(x), results(x.clone())))  # type: ignore[arg-type]


def main(everything: bool) -> None:
    samples_far_apart()
    for module, values in MODULES.items():
        for name, kernel in vars(values).copy().items():
            if name.endswith("_kernel"):
                setattr(values, name, Guarded(f"{module}.{name.removesuffix('_kernel')}", kernel))
    count = edge_cases(everything)
    for (n, c, s), dtype, layout, grad_output, way, (mode, activation) in combinations(everything, GATES):
        parameters = drawn((3, c), torch.float32).to(torch.promote_types(dtype, torch.float32))
        x, g = drawn((n, c, *s), dtype, layout), drawn((n, c, *s), dtype, grad_output)
        try:
            gct_case(x, g, way, mode, activation, parameters, 1e-5)
        except AssertionError as error:
            raise AssertionError(
                f"gct {(n, c, s)} {dtype} {layout}, upstream {grad_output}, {way}, {mode}, {activation}"
            ) from error
        count += 1
    for (n, c, s), dtype, layout, grad_output, way, (fusion, biased) in combinations(
        everything, list(itertools.product(FUSIONS, (True, False)))
    ):
        x, g = drawn((n, c, *s), dtype, layout), drawn((n, c, *s), dtype, grad_output)
        try:
            gc_case(x, g, way, fusion, biased)
        except AssertionError as error:
            raise AssertionError(
                f"gc {(n, c, s)} {dtype} {layout}, upstream {grad_output}, {way}, {fusion}, {biased}"
            ) from error
        count += 1
    walked = {
        f"{name} {what}"
        for name in ("affine._sums", "pool._pool", "pool.gradient_sums")
        for what in ("chunks", "rounds")
    }
    assert walked <= seen, walked - seen
    print(f"{count} cases")


if __name__ == "__main__":
    main("--all" in sys.argv[1:])
