"""Mutants of gatewise.gaternet."""

from mutants import drop_call, remove, replace

CHANGES = {
    "gaternet/budget.py": {
        "Budget.of_some": {
            "the budget forgets what is always open": replace(
                "self.target - float(self.share[always_open].sum())", "self.target"
            ),
        },
        "Budget.schedule": {
            "a schedule continues an old one": remove("self.state.copy_(torch.tensor(_INITIAL_STATE))"),
        },
        "Budget.forward": {
            "all errors are summed": replace(
                "torch.where(error.abs() < _NEAR, price + self.integral * error, price)",
                "price + self.integral * error",
            ),
            "price never negative": replace(
                "price + self.integral * error", "(price + self.integral * error).clamp(min=0)"
            ),
            "controller sees noisy gates": replace(
                "open_share(hard, self.share)", "open_share(gates.detach(), self.share)"
            ),
            "target not lowered gradually": replace(
                "1 - (1 - self.target) * (step / self.ramp).clamp(max=1)", "self.target"
            ),
            "budget sees the images of one process": drop_call("_over_processes"),
            "a second computation moves the budget": replace("recomputing()", "False"),
            "a second computation has the updated price": replace(
                "self._before if again else self.state", "self.state"
            ),
        },
    },
    "gaternet/gater.py": {
        "make_gater": {
            "light gater wider than allowed": replace("LIGHT_SHARE", "4 * LIGHT_SHARE"),
        },
        "_decided": {
            "a head cannot take one training image": replace("len(features) == 1", "False"),
        },
        "LocalDecider.forward": {
            "a pruned map reaches a local decider": remove(
                "_validation.check_unchanged_width('local gates', first.in_features, x.shape[self.channel_axis])"
            ),
        },
    },
    "gaternet/diagnostics.py": {
        "depend_on_image": {
            "a gate that nearly all images open depends on them": replace("share < 1 - NEARLY", "share < 1"),
        },
        "_of_routes": {
            "a network that is pruned on purpose is reported": replace(
                "_mostly_pruned(net, dependent) if routes > 1 else []", "_mostly_pruned(net, dependent)"
            ),
        },
        "_mostly_pruned": {
            "gates that are mostly constant are not reported": replace("dependent >= _FEWEST * net.gate_count", "True"),
        },
        "_of_finished_budget": {
            "a missed budget is not reported": replace("abs(reached - budget.target) > MISSED", "False"),
            "a budget counts as missed before the last step": replace("not budget.finished", "False"),
        },
    },
    "gaternet/routes.py": {
        "open_counts": {
            "a layer does not make up for the rounding of others": replace(
                "budget * site.gates + owed / macs", "budget * site.gates"
            ),
        },
        "Routes._run_route": {
            "a route of one image is one value per channel": replace("len(x) == 1", "False"),
            "statistics of a route need two images": replace(
                "self.training or any(backbone.get_submodule(path).training for path in self.norms.paths)",
                "self.training",
            ),
        },
        "Routes.run": {
            "torch.jit records the routes of the example": replace(
                "torch.compiler.is_exporting() or is_jit_tracing()", "torch.compiler.is_exporting()"
            ),
        },
        "Routes._run_group": {
            "torch.jit records the norms of the dense network": replace(
                "self.norms.lent(route, backbone)", "contextlib.nullcontext()"
            ),
            "threads share the norms of a route": replace("self._turns", "contextlib.nullcontext()"),
        },
        "Routes.choose": {
            "routes are sampled in evaluation": replace("not training or logits.shape[1] == 1", "logits.shape[1] == 1"),
        },
        "Routes.__init__": {
            "random routes weigh as much as drawn ones in an average": remove("self.patterns *= _AT_RANDOM"),
        },
        "Routes.opened": {
            "an average opens old and new routes": replace("self.patterns.amax() / 2", "0"),
        },
        "Routes.preference_loss": {
            "the gater prefers the route of more loss": replace("shares * losses", "-shares * losses"),
        },
    },
    "gaternet/route_norms.py": {
        "check_norms_kept": {
            "routes run without norms that were fused": drop_call("_reads"),
        },
        "_reads": {
            "routes run with norms that were folded": replace(
                "replaced is None or hasattr(replaced, '__wrapped__')", "True"
            ),
        },
    },
    "gaternet/hooks.py": {
        "GateContext": {
            "a backbone without gates reports missing gates": replace("gated: bool = False", "gated: bool = True"),
        },
        "_OfForward": {
            "threads share gates": replace("threading.local", "object"),
        },
        "_ApplyGates.__call__": {
            "a pruned map is multiplied by all gates": remove(
                "_validation.check_unchanged_width(f'the gates of {site.name!r}', factors.shape[1], x.shape[site.channel_axis])"
            ),
            "a recomputed unit has no gates": replace("self.gate_context.gated", "False"),
            "a dense pass that is recomputed has lost its gates": replace("self.number not in given", "True"),
        },
        "keep_attached": {
            "a hook that moved with its layer is added again": replace(
                "if moved:\n    ...\nelif layer is not None:\n    ...\nelse:\n    ...",
                "change_map(layer, hook.side, hook.change)",
            ),
            "a replaced layer of a site is not gated": drop_call("change_map"),
            "a site without its layer is not reported": replace("layer is not None", "True"),
        },
    },
    "gaternet/recalibration.py": {
        "_without_single_images": {
            "statistics are computed from single images": replace("len(joined) == 1", "False"),
        },
    },
    "gaternet/given_routes.py": {
        "set_routes": {
            "given routes keep the norms of others": remove("net.norms_follow_backbone()"),
        },
        "routes_from_gates": {
            "a route opens what any image of a cluster opens": replace(
                "gates[assigned == number].mean(0) > 0.5", "gates[assigned == number].mean(0) > 0"
            ),
        },
        "follow_gates": {
            "the choice between routes begins at random": remove("net.gater.load_state_dict(given)"),
        },
    },
    "gaternet/network.py": {
        "GaterNet.__init__": {
            "a budget from the meta device has no values": replace("torch.device(device)", "torch.enable_grad()"),
            "a light gater is as wide as its routes allow": replace(
                "make_gater(gater, logits, self.gate_count, self.input_shape, self.dense_macs, **head)",
                "make_gater(gater, logits, logits, self.input_shape, self.dense_macs, **head)",
            ),
        },
        "GaterNet.forward_with_gates": {
            "gates remain after a forward": replace("self.gate_context.current.clear()", "None"),
            "replicas of nn.DataParallel lose the loss of the budget": replace(
                "self.training and is_replica(self)", "False"
            ),
            "a proxy of torch.fx reaches a gater": remove("_validation.check_not_symbolic('GaterNet', x)"),
            "an evaluation hides missing gates": replace(
                "if torch.is_grad_enabled():\n    self.gate_context.gated = True",
                "self.gate_context.gated = torch.is_grad_enabled()",
            ),
        },
        "GaterNet._run_dense": {
            "the dense network moves the statistics of the gated one": replace(
                "self.all_open or self.selection is not None", "True"
            ),
        },
        "GaterNet.draw_routes": {
            "drawn routes keep their old norms": remove("self.norms_follow_backbone()"),
        },
        "GaterNet.decide": {
            "noise in evaluation": replace("self.training", "True", nth=2),
        },
        "GaterNet._note": {
            "a second computation counts its loss again": replace("self._due if recomputing() else due", "due"),
        },
        "GaterNet.extra_loss": {
            "the loss of a forward is counted repeatedly": replace(
                "due, self._due = (self._due, None)", "due = self._due"
            ),
        },
        "GaterNet.executed_macs": {
            "gater's own work forgotten": replace("self.dense_macs + self.gater_macs", "self.dense_macs"),
        },
        "GaterNet.__getstate__": {
            "a copy keeps part of a graph": replace("{**super().__getstate__(), **graph}", "super().__getstate__()"),
            "a copy of a compiled net runs the net itself": replace("super().__getstate__()", "self.__dict__"),
        },
        "_local_deciders": {
            "local decisions from the site instead of its convolution": replace(
                "site.name", "site.consumers[0].layer", nth=1
            ),
        },
    },
    "gaternet/sites.py": {
        "Site.spread": {
            "groups interleaved": replace(
                "gates.repeat_interleave(self.group_size, 1)", "gates.repeat(1, self.group_size)"
            ),
        },
        "_by_hand": {
            "order of hand-chosen sites": replace(
                "[name for name in modules if name in names]", "sorted(names, reverse=True)"
            ),
        },
    },
    "gaternet/work.py": {
        "saved_macs": {
            "consumers not saved": replace("outputs * _open_in_groups(gates, site, groups)", "outputs"),
            "calls without gated inputs are free of charge": replace("max(0, without_gated_inputs)", "0"),
            "depthwise layers free of charge": replace("layer.macs", "0 * layer.macs", nth=3),
        },
        "_open_in_groups": {
            "groups of a convolution averaged": replace(
                "_filters_of(site, gates).unflatten(1, (groups, -1)).mean(2)",
                "_filters_of(site, gates).mean(1, keepdim=True).expand(-1, groups)",
            ),
        },
    },
}
