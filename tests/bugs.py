"""Small bugs, each with the test that must catch it; `planted_bugs.py` runs them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One replacement in one file of src/gatewise, and the test that fails with it."""

    name: str
    file: str
    old: str
    new: str
    test_file: str
    test: str


GCT, GC, SE = (f"gates/{name}.py" for name in ("gated_channel_transform", "global_context", "squeeze_excite"))
ORACLES, CONTRACT, TRAPS = "test_oracles.py", "test_gate_contract.py", "test_traps.py"

BUGS = [
    Bug(
        "gct: epsilon outside the first root",
        GCT,
        ".square() + eps).sqrt()",
        ".square()).sqrt() + eps",
        ORACLES,
        "test_gct_equals_its_loop_form",
    ),
    Bug(
        "gct: sum over channels instead of mean",
        GCT,
        "norms.square().mean(1, keepdim=True)",
        "norms.square().sum(1, keepdim=True)",
        ORACLES,
        "test_gct_equals_the_official_formula",
    ),
    Bug(
        "gct: l1 divides by the sum",
        GCT,
        "norms.abs().mean(1, keepdim=True)",
        "norms.abs().sum(1, keepdim=True)",
        ORACLES,
        "test_gct_equals_the_official_formula",
    ),
    Bug(
        "gct: after_relu is dead",
        GCT,
        "(x if after_relu else x.abs())",
        "x.abs()",
        TRAPS,
        "test_after_relu_only_leaves_out_the_absolute_value",
    ),
    Bug(
        "gct: statistic over the batch",
        GCT,
        "norms.square().mean(1, keepdim=True)",
        "norms.square().mean((0, 1), keepdim=True)",
        CONTRACT,
        "test_samples_do_not_mix_in_eval_mode",
    ),
    Bug(
        "gct: eps is dead",
        GCT,
        "eps=self.eps",
        "eps=1e-5",
        CONTRACT,
        "test_an_option_changes_the_output_unless_it_is_declared_inert",
    ),
    Bug(
        "gct: activation is dead",
        GCT,
        "activation=self.activation",
        'activation="tanh"',
        ORACLES,
        "test_gct_equals_its_loop_form",
    ),
    Bug(
        "gct: beta is dead", GCT, "(gamma / divisor) + beta)", "(gamma / divisor))", ORACLES, "test_gct_equals_its_loop"
    ),
    Bug(
        "gct: claims to be the identity always",
        GCT,
        'return self.activation != "sigmoid"',
        "return True",
        CONTRACT,
        "test_a_fresh_gate_is_the_identity_exactly_if_it_says_so",
    ),
    Bug(
        "gct: relu has no gradient where a fresh gate sits",
        GCT,
        "1 + torch.where(z < 0, 0.0, z)",
        "1 + z.relu()",
        CONTRACT,
        "test_a_fresh_gate_begins_to_learn",
    ),
    Bug(
        "gct: odd p without absolute values",
        GCT,
        "size = x.to(dtype) if after_relu else x.to(dtype).abs()",
        "size = x.to(dtype)",
        TRAPS,
        "test_trap_02_general_p_takes_absolute_values",
    ),
    Bug(
        "gct: beta decays",
        GCT,
        'no_weight_decay: ClassVar[tuple[str, ...]] = ("beta",)',
        "no_weight_decay: ClassVar[tuple[str, ...]] = ()",
        TRAPS,
        "test_trap_25_beta_is_exempt_by_ownership_not_by_name",
    ),
    Bug(
        "gct: layout is lost",
        GCT,
        "    norms = alpha * channel_norms(x,",
        "    x = x.contiguous()\n    norms = alpha * channel_norms(x,",
        CONTRACT,
        "test_memory_format_is_kept",
    ),
    Bug(
        "half types are reduced in half precision",
        "functional.py",
        "return torch.promote_types(dtype, torch.float32)",
        "return dtype",
        TRAPS,
        "test_trap_08_half_precision_norm_is_reduced_in_float32",
    ),
    Bug(
        "gc: bias of the last convolution is not zero",
        GC,
        "                nn.init.zeros_(parameter)",
        "                nn.init.zeros_(parameter) if parameter.dim() > 1 else None",
        TRAPS,
        "test_trap_10_the_last_convolution_starts_at_zero_bias_included",
    ),
    Bug(
        "gc: softmax over the batch",
        "functional.py",
        "weights = weights / weights.sum(axes, keepdim=True)",
        "weights = weights / weights.sum((0, *axes), keepdim=True)",
        ORACLES,
        "test_gc_equals_its_loop_form",
    ),
    Bug(
        "gc: softmax overflows",
        "functional.py",
        "(logits - logits.amax(axes, keepdim=True)).exp()",
        "logits.exp()",
        TRAPS,
        "test_trap_09_attention_is_a_softmax_over_positions",
    ),
    Bug(
        "gc: one plane, so the block is blind",
        GC,
        "        width = width if width >= 2 else 4\n",
        "",
        TRAPS,
        "test_trap_13_few_planes_do_not_make_the_block_blind",
    ),
    Bug(
        "gc: layer norm with timm's epsilon",
        GC,
        "nn.LayerNorm([width] + [1] * self.spatial_dims,",
        "nn.LayerNorm([width] + [1] * self.spatial_dims, eps=1e-6,",
        ORACLES,
        "test_gc_loads_weights_with_mmcv_names_and_shapes_and_agrees",
    ),
    Bug(
        "gc: average pooling is dead",
        GC,
        'attends = pooling == "attention"',
        "attends = True",
        ORACLES,
        "test_gc_equals",
    ),
    Bug(
        "gc: writes into its input",
        GC,
        "x = x + add(context).to(x.dtype)",
        "x += add(context).to(x.dtype)",
        ORACLES,
        "test_gc_equals_its_loop_form",
    ),
    Bug(
        "se: no relu in the bottleneck",
        SE,
        "torch.relu(reduce(average_pool(x)))",
        "reduce(average_pool(x))",
        ORACLES,
        "test_se_equals_its_loop_form",
    ),
    Bug(
        "se: the input is not checked",
        SE,
        "        self.check_input(x)\n",
        "",
        "test_checks.py",
        "test_other_channels_are_refused_with_both_numbers_and_the_next_step",
    ),
    Bug(
        "refusal without the f of its string",
        "_checks.py",
        'f"{owner} expects floating-point input, got',
        '"{owner} expects floating-point input, got',
        "test_checks.py",
        "test_an_integer_map_is_refused_with_its_type_and_the_next_step",
    ),
    Bug(
        "a bottleneck of no channels",
        "registry.py",
        "return max(1, int(channels * rd_ratio) // rd_divisor) * rd_divisor",
        "return int(channels * rd_ratio) // rd_divisor * rd_divisor",
        "test_registry.py",
        "test_the_bottlenecks_width",
    ),
]
