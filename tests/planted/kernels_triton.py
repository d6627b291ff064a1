"""Bugs in the Triton kernels of the gates."""

from planted.bug import Bug

ON_CHIP, GCT, NORMS, AFFINE, POOL, GRADIENTS, MAPS = (
    f"kernels/triton/{name}.py"
    for name in (
        "gated_channel_on_chip",
        "gated_channel_transform",
        "normalised_norms",
        "channel_affine",
        "attention_pool",
        "attention_gradients",
        "maps",
    )
)

# Name, file, what stands there, what stands there with the bug.
_REPLACED = [
    ("sum over channels for their mean, l2", NORMS, "tl.sum(s * s, 0) / channels", "tl.sum(s * s, 0)"),
    ("sum over channels for their mean, l1", NORMS, "tl.sum(tl.abs(s), 0) / channels", "tl.sum(tl.abs(s), 0)"),
    ("signed norms of l1", NORMS, "tl.sum(tl.abs(s), 0)", "tl.sum(s, 0)"),
    ("no pull of the other channels", NORMS, "else sign(u)) * shared", "else sign(u)) * 0.0"),
    ("the other channels push", NORMS, "ds = r * (dz * gamma - (u if", "ds = r * (dz * gamma + (u if"),
    ("relu is flat at 0", NORMS, "slope = tl.where(z < 0, 0.0, 1.0)", "slope = tl.where(z <= 0, 0.0, 1.0)"),
    ("tanh has the slope of sigmoid", NORMS, "slope = scale * scale * small", "slope = scale * small"),
    ("sign of 0 is -1", NORMS, "tl.where(x < 0, -1.0, 0.0)", "tl.where(x <= 0, -1.0, 0.0)"),
    ("on chip: no beta", ON_CHIP, "factor_and_slope(gamma * u + beta, ACTIVATION)", "factor_and_slope(gamma * u, ACTIVATION)"),
    ("in tiles: no beta", GCT, "factor_and_slope(gamma * u + beta, ACTIVATION)", "factor_and_slope(gamma * u, ACTIVATION)"),
    ("on chip: no eps in the norm", ON_CHIP, "tl.sqrt(tl.sum(x * x, 1) + EPS)", "tl.sqrt(tl.sum(x * x, 1))"),
    ("in tiles: no eps in the norm", GCT, "tl.sqrt(total + EPS)", "tl.sqrt(total)"),
    ("on chip: the map's gradient is pulled the wrong way", ON_CHIP, "upstream * factor[:, None] + (x if", "upstream * factor[:, None] - (x if"),
    ("in tiles: the map's gradient is pulled the wrong way", GCT, "upstream * factor[:, None] + (x if", "upstream * factor[:, None] - (x if"),
    ("on chip: gradients of gamma and beta exchanged", ON_CHIP, "tl.store(dparams + dparams_stride, dgamma, mask=given)", "tl.store(dparams + dparams_stride, dbeta, mask=given)"),
    ("on chip: the upstream is read through the map's stride", ON_CHIP, "channel[:, None] * upstream_stride_c", "channel[:, None] * x_stride_c"),
    ("in tiles: the gradient is written through the map's stride", GCT, "n * dx_stride_n + channel[:, None] * dx_stride_c", "n * dx_stride_n + channel[:, None] * x_stride_c"),
    ("on chip: the tail of the channels is written", ON_CHIP, "tl.store(norms_ptr + n * channels + channel, norm, mask=given)", "tl.store(norms_ptr + n * channels + channel, norm)"),
    ("every map is for one program", GCT, "<= ON_CHIP:\n        y =", "> 0:\n        y ="),
    ("the tail of the positions is added up", AFFINE, "        inside = (channel < channels)[:, None] & (position < positions)[None, :]\n        x =", "        inside = (channel < channels)[:, None] & (position >= 0)[None, :]\n        x ="),
    ("the tail of the positions is written", AFFINE, "tl.store(y_ptr + target, value.to(y_ptr.dtype.element_ty), mask=inside)", "tl.store(y_ptr + target, value.to(y_ptr.dtype.element_ty))"),
    ("a program walks over its first tile again", AFFINE, "(chunk * rounds + number) * BLOCK_M", "chunk * rounds * BLOCK_M"),
    ("chunks overlap", AFFINE, "(chunk * rounds + number) * BLOCK_M", "(chunk + number) * BLOCK_M"),
    ("only the first chunk counts", AFFINE, "sums[:, :, 0] if chunks == 1 else sums.sum(2)", "sums[:, :, 0]"),
    ("the sums of upstream are those of the products", AFFINE, "tl.sum(plain, 1)", "tl.sum(total, 1)"),
    ("the offset is subtracted", AFFINE, "value += tl.load(offsets_ptr", "value -= tl.load(offsets_ptr"),
    ("a stale running maximum: the context is not shrunk", POOL, "context = context * shrink +", "context = context +"),
    ("a stale running maximum: the total is not shrunk", POOL, "total = total * shrink +", "total = total +"),
    ("a stale running maximum: it never rises", POOL, "        peak = higher\n", "        peak = peak\n"),
    ("positions behind the last have logit 0", POOL, "        logit = tl.where(given, logit, float(\"-inf\"))\n", ""),
    ("the bias is left out", POOL, "HAS_BIAS=bias is not None", "HAS_BIAS=False"),
    ("chunks are added up as if they had one peak", POOL, "tl.sum(scale[:, None] * contexts / total, 0)", "tl.sum(contexts / total, 0)"),
    ("attention is not divided by its sum", POOL, "tl.exp(logit - peak) / total", "tl.exp(logit - peak)"),
    ("chunks keep their own bases", POOL, "dweight = (pulled + (off_common - shift) * pooled)", "dweight = (pulled - shift * pooled)"),
    ("the softmax has no shared term", GRADIENTS, " - tl.load(bases_ptr + 2 * n + 1))", ")"),
    ("the sums keep their old base", GRADIENTS, "- (rebased - base) * pooled", "- 0.0 * pooled"),
    ("the softmax's gradient has the wrong sign", GRADIENTS, "+ weight[:, None] * dlogit[None, :]", "- weight[:, None] * dlogit[None, :]"),
    ("upstream is not multiplied by its factors", GRADIENTS, "upstream *= tl.load(factors_ptr", "upstream += 0 * tl.load(factors_ptr"),
    ("an upstream in another order is copied into the map's place", MAPS, "copy_(given)", "copy_(x)"),
    ("in tiles: samples are found by 32 bits", MAPS, "return (rest // c_blocks).to(tl.int64)", "return rest // c_blocks"),
    ("on chip: samples are found by 32 bits", ON_CHIP, "    \"\"\"One sample: its map is read once and written once.\"\"\"\n    n = tl.program_id(0).to(tl.int64)", "    n = tl.program_id(0)"),
    ("blocks of channels are taken for samples", MAPS, "(rest // c_blocks).to(tl.int64)", "rest.to(tl.int64)"),
]  # fmt: skip

BUGS = [
    Bug(
        f"triton: {name}",
        file,
        old,
        new,
        "test_triton_gates.py",
        "test_the_kernels_in_the_interpreter_give_what_is_defined",
    )
    for name, file, old, new in _REPLACED
]
