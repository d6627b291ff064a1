"""Mutants of gatewise.inference."""

from mutants import drop_call, flip, off_by_one, remove, replace

CHANGES = {
    "inference/active_filters.py": {
        "ActiveFilters.filters": {
            "a full list of patterns closes open filters": replace("self._known.clear", "self.forget"),
        },
        "ActiveFilters.open": {
            "buckets without multiplication": replace("alike and union.any()", "union.any()"),
            "closed filters computed": replace("union.all() and site.driven_by is None", "True"),
        },
        "_LRUWeightCache.of": {
            "memory without limit": replace("self.bytes > self.limit", "self.bytes < 0"),
            "weights picked each time": remove("if found is not None:\n    ..."),
        },
    },
    "inference/compaction.py": {
        "_check_same": {
            "a compacted network may compute something else": remove(
                "if not difference <= _ROUNDING.get(next(net.parameters()).dtype, _ROUNDING[torch.float16]): ..."
            ),
        },
        "Compaction.apply": {
            "a compaction fits any network": replace("not isinstance(net, GaterNet)", "False"),
        },
        "compact": {
            "constant while only often the same": replace(
                "{0: GateState.CLOSED, images: GateState.OPEN}",
                "{0: GateState.CLOSED, images: GateState.OPEN, images - 1: GateState.OPEN}",
            ),
        },
        "_disagreeing": {
            "disagreement with decided gates": replace("(gates != expected) & constant", "gates != expected"),
        },
    },
    "inference/conditional.py": {
        "_open_for_some": {
            "no filter where all are closed": replace("states | first & ~states.any()", "states"),
            "only the first image's filters": replace("gates.amax(0)", "gates[0]"),
            "the conditional network computes everything": off_by_one("gates.amax(0) > 0"),
        },
    },
    "inference/dynamic_layers.py": {
        "open_per_channel": {
            "instance norms run without their parameters": replace("(layer.weight, layer.bias)", "(None, None)"),
        },
        "OpenConvolution.__call__": {
            "nothing is packed": replace("self.active_filters.packs", "False"),
            "layers that run whole are packed each time": replace(
                "self.active_filters.whole if inputs is outputs is None else self.active_filters.picked",
                "self.active_filters.picked",
            ),
        },
    },
    "inference/fold.py": {
        "convolve": {
            "transposed convolutions ignore the size they are called with": replace(
                "layer.output_padding if output_size is None else _output_padding(layer, x, output_size)",
                "layer.output_padding",
            ),
        },
        "per_output": {
            "scales of grouped transposed convolutions are mixed up": replace(
                "values.view(groups, 1, -1).expand(-1, rows, -1).reshape(groups * rows, -1, *axes)",
                "values[: len(values) // groups].view(1, -1, *axes)",
            ),
        },
        "scale_and_shift": {
            "norms folded without their mean": replace("-norm.running_mean.to(dtype)", "0 * norm.running_mean"),
        },
        "can_fold": {
            "inference: norms are not folded": replace(
                "is_plain_convolution(convolution) and not count_hooks(convolution, 'output') and has_scale_and_shift(norm)",
                "True",
            ),
        },
    },
    "core/merging.py": {
        "merged": {
            "patterns mixed up between images": drop_call("argsort"),
        },
        "_column": {
            "a value of one sub-batch stands for all": replace("type(part) is type(first) and part == first", "True"),
            "rows of images get lost": replace(
                "torch.cat(rows)[order.to(parts[0].device)].flatten(0, 1)",
                "torch.cat(rows)[order.to(parts[0].device)][:, 0]",
            ),
        },
    },
    "core/nesting.py": {
        "_parts": {
            "a dataclass is not taken apart": replace("dataclasses.is_dataclass(value)", "False"),
        },
        "_record": {
            "the parts of a frozen dataclass cannot be replaced": replace(
                "object.__setattr__(copied, name, part)", "setattr(copied, name, part)"
            ),
        },
    },
    "inference/packed.py": {},
    "inference/restructure.py": {
        "_cut": {
            "no zeros after an addition": replace("plan.hold(small.backbone)", "pass"),
        },
        "_Plan.__init__": {
            "unbalanced groups": replace(
                "math.lcm(1, *(getattr(layer, 'groups', 1) for layer in layers))", "min(1, len(layers))"
            ),
        },
        "_Plan.take_out": {
            "kept filters that are closed are read": flip("not self.decided"),
        },
        "_Plan.new_site.scaled": {
            "work of compacted layers as before": replace("round(layer.macs * share)", "layer.macs"),
        },
    },
    "inference/routed.py": {
        "Chooser.forward": {
            "images take the route with the fewest of their gates": replace("gates - 0.5", "0.5 - gates"),
        },
        "RoutedNet.forward": {
            "forced gates are ignored route by route": replace(
                "self.forward_with_gates(x, gates)", "self.forward_with_gates(x)"
            ),
        },
        "RoutedNet.forward_with_gates": {
            "a net that runs route by route is recorded": replace("is_recorded(x)", "False"),
            "fewer gates than images are taken route by route": replace(
                "check_gates(gates, images=len(x), count=self.chooser.patterns.shape[1])", "pass"
            ),
        },
        "_dense_networks": {
            "all routes are the first": replace("patterns.tolist()", "patterns[:1].expand(len(patterns), -1).tolist()"),
        },
    },
    "inference/skip.py": {
        "SkippingNet.forward_with_gates": {
            "threads share the open filters": replace("self._turns", "torch.no_grad()"),
            "a skipping net is compiled": replace(
                "torch.compiler.is_compiling() and (not torch.compiler.is_exporting())", "False"
            ),
            "a skipping net is recorded": replace("is_recorded(x)", "False"),
        },
        "SkippingNet._skip": {
            "gates between 0 and 1 count as open": replace("not hard", "False"),
            "local gates of no image are decided": replace(
                "gates is None and self.net.is_local", "gates is None and self.net.is_local and len(x)"
            ),
        },
        "SkippingNet._fastest": {
            "auto takes a way that gains nothing": replace(
                "_PROMISING * times[plain].median_s", "times[plain].median_s"
            ),
            "auto times only the first batch": replace("(*x.shape, torch.get_num_threads())", "(0,)"),
        },
        "SkippingNet._way": {
            "auto times patterns that it knows": remove("self.active_filters.forget_patterns()"),
        },
        "SkippingNet._way_of_local": {
            "local gates are always skipped": replace("self.mode != 'auto'", "True"),
        },
        "SkippingNet._follow_weights": {
            "moved networks keep their picked weights": replace("now != self._where", "False"),
        },
    },
    "inference/skippable.py": {
        "_run_open": {
            "a site with a closed trial gate is tried completely": replace(
                "dependency.possible", "dependency.possible and union.any() and (not union.all())"
            ),
        },
    },
    "inference/slicing.py": {
        "keep_inputs": {
            "a transposed convolution loses outputs instead of inputs": replace("_rows", "_columns"),
        },
        "_columns": {
            "the wrong columns of grouped inputs": replace(
                "kept.view(groups, -1) - width * torch.arange(groups, device=kept.device)[:, None]",
                "kept.view(groups, -1) % 1",
            ),
        },
        "keep_channels": {
            "running statistics stay": replace(
                "('weight', 'bias', 'running_mean', 'running_var')", "('weight', 'bias')"
            ),
        },
    },
    "inference/verify.py": {
        "drop_unsafe": {
            "nothing is tried": replace("trial.why_not(dependencies) is None", "True"),
            "sites are tried without those found to be safe": replace(
                "[*safe[:number], dependency, *safe[number + 1:]]",
                "[*[ChannelDependency()] * number, dependency, *safe[number + 1:]]",
            ),
        },
        "Trial.__init__": {
            "networks without float64 cannot be tried": replace("_AGREE.items()", "[(torch.float64, 1e-9)]"),
        },
    },
}
