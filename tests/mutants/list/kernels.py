"""Mutants of gatewise.gates.kernels."""

from mutants import drop_call, flip, off_by_one, remove, replace

CHANGES = {
    "gates/kernels/backend.py": {
        "why_observed": {
            "kernels under functorch": replace("is_transform_active()", "False"),
            "kernels under torch.jit.trace": replace("is_jit_tracing()", "False"),
        },
        "_why_unreadable": {
            "any strides": replace("not (x.is_contiguous() or _is_channels_last(x))", "x is None"),
        },
    },
    "gates/kernels/channels.py": {
        "_Scale.forward": {
            "the map is kept twice": replace("whole if ctx.linked else x", "x.clone()"),
        },
        "SharedGradient.take_factors": {
            "another consumer of the map has a wrong gradient": replace("gradient is not handed_on", "False"),
        },
        "_Scale.backward": {
            "factors are left from another pass": replace(
                "(*((None, *others, of_map) if ctx.linked else (of_map, *others, None)), None)",
                "(of_map, *others, None, None)",
            ),
        },
    },
    "gates/kernels/cpu/attention_pool.py": {
        "_raise_highest": {
            "cpu: stale running maximum": replace("math.exp(state[_HIGHEST] - highest)", "1.0"),
        },
        "_backward": {
            "cpu: the gradient of attention is omitted": replace("projected[j] - expected[n]", "projected[j]"),
        },
        "forward": {
            "cpu: parts of a sample are not put together": replace(
                "states[..., 1:] * (states[..., :1] - highest).exp()", "states[..., 1:]"
            ),
        },
    },
    "gates/kernels/cpu/gated_channel_kernels.py": {
        "_reciprocal": {
            "cpu: sum for mean": replace("total / norms.size", "total"),
        },
        "_put_together": {
            "cpu: eps outside the root": replace("total + eps", "total"),
            "cpu: only the first part counts": replace("total += totals[part, c]", "total = totals[0, c]"),
        },
        "_forward": {
            "cpu: missing beta": replace(
                "norms[n, c] * alpha[c] * (gamma[c] * reciprocal) + beta[c]",
                "norms[n, c] * alpha[c] * (gamma[c] * reciprocal)",
            ),
        },
        "_gradients": {
            "cpu: missing beta backward": replace(
                "s * (gamma[c] * reciprocal) + beta[c]", "s * (gamma[c] * reciprocal)"
            ),
            "cpu: the shared divisor has no gradient": replace(
                "products[c] * gamma[c] * reciprocal - shared * back", "products[c] * gamma[c] * reciprocal"
            ),
        },
    },
    "gates/kernels/cpu/numba_utils.py": {
        "_to_bfloat16.generate": {
            "cpu: bfloat16 is cut off": replace("builder.add(builder.add(bits, _WORD(32767)), odd)", "bits"),
        },
        "_slope": {
            "cpu: wrong sign of zero": off_by_one("value > 0"),
        },
        "add_sums": {
            "cpu: tail of a run omitted": replace("sample.shape[1]", "sample.shape[1] - _RUN + 1"),
            "cpu: tail of pixels omitted": replace("min(m + _PIXELS, last)", "min(m + _PIXELS, last - 1)"),
        },
        "repeat": {
            "cpu: lanes not repeated": replace("lane - channels", "0"),
        },
    },
    "gates/kernels/cpu/openmp.py": {
        "Kernel.__init__": {
            "stale kernels": remove("function.__qualname__ += f'_{_sources()}'"),
        },
        "runtime": {"a file that is no library stops gates": replace("OSError", "ValueError")},
    },
    "gates/kernels/cpu/scheduling.py": {
        "phase_of": {
            "cpu: no wait for the other parts": remove("wait_for_all()"),
        },
        "maps_at": {
            "cpu: wrong stride": replace("(channels, positions)", "(channels, positions - 1)"),
        },
    },
    "gates/kernels/triton/attention_gradients.py": {
        "gradient_sums_kernel": {
            "triton: the sums keep their old base": replace("(rebased - base) * pooled", "0.0 * pooled"),
        },
        "map_gradient_kernel": {
            "triton: the softmax has no shared term": replace(
                "grad_x - tl.load(bases_ptr + 2 * n) - tl.load(bases_ptr + 2 * n + 1)",
                "grad_x - tl.load(bases_ptr + 2 * n)",
            ),
            "triton: the softmax's gradient has the wrong sign": flip(
                "attention[None, :] * dcontext[:, None] + weight[:, None] * dlogit[None, :]"
            ),
            "triton: grad_output is not multiplied by its factors": replace(
                "grad_output *= tl.load(factors_ptr + row, mask=channel < channels, other=0.0)[:, None]",
                "grad_output += 0 * tl.load(factors_ptr + row, mask=channel < channels, other=0.0)[:, None]",
            ),
        },
    },
    "gates/kernels/triton/attention_pool.py": {
        "_pool_kernel": {
            "triton: a stale running maximum: the context is not shrunk": replace("context * shrink", "context"),
            "triton: a stale running maximum: the total is not shrunk": replace("total * shrink", "total"),
            "triton: a stale running maximum: it never rises": replace("peak = higher", "peak = peak"),
            "triton: positions after the last have logit 0": remove("logit = tl.where(given, logit, float('-inf'))"),
        },
        "_combine_kernel": {
            "triton: chunks are added up as if they had one peak": replace("scale[:, None] * contexts", "contexts"),
            "triton: attention is not divided by its sum": replace(
                "tl.exp(logit - peak) / total", "tl.exp(logit - peak)"
            ),
        },
        "forward": {
            "triton: the bias is omitted": replace("bias is not None", "False"),
        },
        "_combined": {
            "triton: chunks keep their own bases": replace(
                "pulled + (off_common - shift) * pooled", "pulled - shift * pooled"
            ),
        },
    },
    "gates/kernels/triton/channel_affine.py": {
        "_affine_kernel": {
            "triton: the tail of the positions is written": remove("mask=inside", nth=2),
            "triton: the offset is subtracted": replace(
                "value += tl.load(offsets_ptr + n * channels + channel, mask=channel < channels, other=0.0)[:, None]",
                "value -= tl.load(offsets_ptr + n * channels + channel, mask=channel < channels, other=0.0)[:, None]",
            ),
        },
        "_sums_kernel": {
            "triton: the tail of the positions is added up": replace("position < positions", "position >= 0"),
            "triton: a program walks over its first tile again": replace("chunk * rounds + number", "chunk * rounds"),
            "triton: chunks overlap": replace("chunk * rounds", "chunk"),
            "triton: the sums of grad_output are those of the products": replace(
                "tl.sum(plain, 1)", "tl.sum(total, 1)"
            ),
        },
        "channel_sums": {
            "triton: only the first chunk counts": replace(
                "sums[:, :, 0] if chunks == 1 else sums.sum(2)", "sums[:, :, 0]"
            ),
        },
    },
    "gates/kernels/triton/gated_channel_on_chip.py": {
        "forward_on_chip_kernel": {
            "triton: on chip: no beta": replace("gamma * u + beta", "gamma * u"),
            "triton: on chip: no eps in the norm": replace("tl.sum(x * x, 1) + EPS", "tl.sum(x * x, 1)"),
            "triton: on chip: the tail of the channels is written": remove("mask=given", nth=1),
            "triton: on chip: samples are found by 32 bits": drop_call("tl.program_id(0).to(tl.int64)"),
        },
        "backward_on_chip_kernel": {
            "triton: on chip: the map's gradient is pulled the wrong way": flip(
                "grad_output * factor[:, None] + (x if MODE == 'l2' else sign(x)) * grad_x[:, None]"
            ),
            "triton: on chip: gradients of gamma and beta exchanged": replace("dgamma", "dbeta"),
            "triton: on chip: the grad_output is read through the map's stride": replace(
                "grad_output_stride_c", "x_stride_c"
            ),
        },
    },
    "gates/kernels/triton/gated_channel_transform.py": {
        "_factors_kernel": {
            "triton: in tiles: no beta": replace("gamma * u + beta", "gamma * u"),
            "triton: in tiles: no eps in the norm": replace("total + EPS", "total"),
        },
        "_map_gradient_kernel": {
            "triton: in tiles: the map's gradient is pulled the wrong way": flip(
                "grad_output * factor[:, None] + (x if MODE == 'l2' else sign(x)) * grad_x[:, None]"
            ),
            "triton: in tiles: the gradient is written through the map's stride": replace("dx_stride_c", "x_stride_c"),
        },
        "forward": {
            "triton: every map is for one program": replace(
                "constants['BLOCK_C'] * constants['BLOCK_M'] <= ON_CHIP",
                "constants['BLOCK_C'] * constants['BLOCK_M'] > 0",
            ),
        },
    },
    "gates/kernels/triton/maps.py": {
        "in_order_of": {
            "triton: grad_output in another order is copied into the map's place": replace(
                "torch.empty_like(x, dtype=grad_output.dtype).copy_(given)",
                "torch.empty_like(x, dtype=grad_output.dtype).copy_(x)",
            ),
        },
        "locate": {
            "triton: in tiles: samples are found by 32 bits": drop_call("(rest // c_blocks).to(tl.int64)"),
            "triton: blocks of channels are treated as samples": replace("rest // c_blocks", "rest"),
        },
    },
    "gates/kernels/triton/normalised_norms.py": {
        "factor_and_slope": {
            "triton: relu is flat at 0": replace("tl.where(z < 0, 0.0, 1.0)", "tl.where(z <= 0, 0.0, 1.0)"),
            "triton: tanh has the slope of sigmoid": replace("scale * scale", "scale"),
        },
        "normalise": {
            "triton: sum over channels for their mean, l2": replace("tl.sum(s * s, 0) / channels", "tl.sum(s * s, 0)"),
            "triton: sum over channels for their mean, l1": replace(
                "tl.sum(tl.abs(s), 0) / channels", "tl.sum(tl.abs(s), 0)"
            ),
            "triton: signed norms of l1": drop_call("tl.abs(s)"),
        },
        "sign": {
            "triton: sign of 0 is -1": off_by_one("x < 0"),
        },
        "gradients": {
            "triton: no grad_x of the other channels": replace(
                "(u if MODE == 'l2' else sign(u)) * shared", "(u if MODE == 'l2' else sign(u)) * 0.0"
            ),
            "triton: the other channels push": flip("dz * gamma - (u if MODE == 'l2' else sign(u)) * shared"),
        },
    },
}
