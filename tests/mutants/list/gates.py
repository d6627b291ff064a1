"""Mutants of gatewise.gates."""

from mutants import drop_call, off_by_one, remove, replace

CHANGES = {
    "gates/efficient_channel_attention.py": {
        "adaptive_kernel_size": {
            "eca: kernel of the next odd number": replace("1", "3"),
        },
        "EfficientChannelAttention.__init__": {
            "eca: given kernel size is dead": replace("kernel_size is None", "True"),
            "eca: circular instead of zeros": replace(
                "nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)",
                "nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, padding_mode='circular', bias=False, device=device, dtype=dtype)",
            ),
        },
    },
    "gates/gated_channel_transform.py": {
        "": {
            "gct: relu has no gradient where a fresh gate sits": replace("torch.where(z < 0, 0.0, z)", "z.relu()"),
        },
        "channel_norms": {
            "gct: epsilon outside the first root": replace(
                "(torch.linalg.vector_norm(x, 2, axes, keepdim=True, dtype=dtype).square() + eps).sqrt()",
                "torch.linalg.vector_norm(x, 2, axes, keepdim=True, dtype=dtype).square().sqrt() + eps",
            ),
            "gct: after_relu is dead": replace("x if after_relu else x.abs()", "x.abs()"),
            "gct: odd p without absolute values": replace(
                "x.to(dtype) if after_relu else x.to(dtype).abs()", "x.to(dtype)"
            ),
        },
        "gated_channel_transform": {
            "gct: layout is lost": replace(
                "norms = channel_norms(x, mode, eps, after_relu)",
                "x = x.contiguous(); norms = channel_norms(x, mode, eps, after_relu)",
            ),
        },
        "pooled_channel_norms": {
            "gct: exported norms without epsilon": replace(
                "(x * x).mean(axes, keepdim=True) * positions + eps", "(x * x).mean(axes, keepdim=True) * positions"
            ),
        },
        "_scaled_by_norms": {
            "gct: sum over channels instead of mean": replace("norms.square().mean", "norms.square().sum"),
            "gct: l1 divides by the sum": replace("norms.abs().mean", "norms.abs().sum"),
            "gct: statistic over the batch": replace(
                "norms.square().mean(1, keepdim=True)", "norms.square().mean((0, 1), keepdim=True)"
            ),
            "gct: beta is dead": replace("norms * (gamma / divisor) + beta", "norms * (gamma / divisor)"),
        },
        "GatedChannelTransform": {
            "gct: beta decays": replace("('beta',)", "()"),
        },
        "GatedChannelTransform.__init__": {
            "gct: a stored epsilon cannot be read": replace("eps not in (_EPS, epsilon)", "eps is not _EPS"),
        },
        "GatedChannelTransform.identity_at_init": {
            "gct: claims to be the identity always": replace("self.activation != 'sigmoid'", "True"),
        },
        "GatedChannelTransform.channel_options": {
            "gct: eps is dead": replace("self.eps", "1e-05"),
            "gct: activation is dead": replace("self.activation", "'tanh'"),
        },
    },
    "gates/gather_excite.py": {
        "gather_excite": {
            "ge: linear interpolation": replace("'nearest'", "('linear', 'bilinear', 'trilinear')[x.dim() - 3]"),
        },
        "neighbourhood_means": {
            "ge: padding is counted": replace("sums / shares", "sums"),
            "ge: window of the stride's size": replace("2 * extent - 1", "extent"),
        },
        "GatherExcite._checked_map_size": {
            "ge: an extent of three can be learned": replace(
                "self.extent == 1 or self.extent & self.extent - 1", "self.extent == 1"
            ),
        },
        "GatherExcite._gather": {
            "ge: convolutions mix channels": replace("groups=channels", "groups=1"),
            "ge: relu after the last norm": off_by_one("step < steps"),
        },
        "GatherExcite.reset_parameters": {
            "ge: batch norms are not reset": replace("CONVOLUTIONS + NORMS", "CONVOLUTIONS"),
        },
        "GatherExcite.check_input": {
            "ge: any size for a convolution of the whole map": replace("self.map_size is not None", "False"),
        },
    },
    "gates/global_context.py": {
        "_with_context": {
            "gc: writes into its input": replace("x = x + add(context).to(x.dtype)", "x += add(context).to(x.dtype)"),
        },
        "GlobalContext.channels": {
            "gc: a replica has no width": replace("first.weight.shape[1]", "next(self.parameters()).shape[1]"),
        },
        "GlobalContext.__init__": {
            "gc: one plane, so the block is blind": remove("width = width if width >= 2 else 4"),
            "gc: average pooling is dead": replace("pooling == 'attention'", "True"),
        },
        "GlobalContext.__init__.transform": {
            "gc: layer norm with timm's epsilon": replace("eps", "1e-06"),
        },
        "GlobalContext.reset_parameters": {
            "gc: bias of the last convolution is not zero": replace(
                "nn.init.zeros_(parameter)", "nn.init.zeros_(parameter) if parameter.dim() > 1 else None"
            ),
        },
    },
    "gates/local_response_norm.py": {
        "local_response_norm": {
            "lrn: alpha divided by the size": replace("alpha * sums", "alpha / size * sums"),
            "lrn: window shifted": replace("(reach, reach)", "(2 * reach, 0)"),
            "lrn: squares in half precision": drop_call("x.to(at_least_float32(x.dtype))"),
        },
        "LocalResponseNorm.__init__": {
            "lrn: an even size is taken": remove("_validation.check_odd(size=size)"),
        },
    },
    "gates/non_local.py": {
        "non_local": {
            "nl: logits multiplied by the root": replace("queries.shape[2] ** (-0.5)", "queries.shape[2] ** 0.5"),
            "nl: root of the outer channels": replace("queries.shape[2]", "x.shape[1]"),
            "nl: the gaussian is scaled too": replace(
                "1.0 if pairwise == 'gaussian' else queries.shape[2] ** (-0.5)", "queries.shape[2] ** (-0.5)"
            ),
        },
        "_attended": {
            "nl: all pairs held at once": replace(
                "nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)", "(q @ k.mT * scale).softmax(3) @ v"
            ),
        },
        "_multiplied": {
            "nl: dot product not divided by the positions": replace("k.mT @ v / v.shape[1]", "k.mT @ v"),
        },
        "_concatenated": {
            "nl: concatenation without relu": drop_call("relu"),
            "nl: the key before the query": replace("[0 * queries, keys]", "[keys, 0 * queries]"),
        },
        "NonLocal.reset_parameters": {
            "nl: last convolution not zero": remove("for parameter in self.conv_out.parameters():\n    ..."),
        },
    },
    "gates/simplified_non_local.py": {
        "simplified_non_local": {
            "snl: the map itself is lost": replace(
                "x + value(attention_pool(x, mask(x))).to(x.dtype)",
                "0 * x + value(attention_pool(x, mask(x))).to(x.dtype)",
            ),
        },
        "SimplifiedNonLocal.reset_parameters": {
            "snl: bias of W_v not zero": replace(
                "nn.init.zeros_(parameter)", "nn.init.zeros_(parameter) if parameter.dim() > 1 else None"
            ),
        },
    },
    "gates/squeeze_excite.py": {
        "excitation": {
            "se: no relu in the bottleneck": drop_call("relu"),
        },
        "SqueezeExcite.forward": {
            "se: the input is not checked": remove("self.check_input(x)"),
        },
    },
    "gates/triplet_attention.py": {
        "zpool": {
            "triplet: mean before maximum": replace("[x.amax(axis), means]", "[means, x.amax(axis)]"),
        },
        "triplet_attention": {
            "triplet: rows and channels exchanged": replace(
                "hc(zpool(x.transpose(1, 2), 3)).sigmoid().permute(0, 3, 2, 1)",
                "hc(zpool(x, 3)).sigmoid().permute(0, 2, 3, 1)",
            ),
            "triplet: two branches divided by three": replace("factors / 2", "factors / 3"),
        },
        "branch": {
            "triplet: momentum of another framework": replace("momentum=0.01", "momentum=0.99"),
        },
        "TripletAttention.__init__": {
            "triplet: no_spatial is dead": replace(
                "None if no_spatial else branch(kernel_size, device, dtype)", "branch(kernel_size, device, dtype)"
            ),
        },
    },
}
