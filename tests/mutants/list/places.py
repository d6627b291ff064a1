"""Mutants of gatewise.graph."""

from mutants import drop_call, remove, replace

CHANGES = {
    "graph/boundary.py": {
        "why_out_of_reach": {
            "a gate is called with a tuple": replace("{call.returned for call in calls} - {''}", "set()"),
            "a gate changes the first argument, not the map": replace("call.first != shape", "False"),
            "a gate changes one of two equal arguments": replace("call.first in call.others", "False"),
        },
    },
    "graph/channel_dependencies.py": {
        "_Walk.to": {
            "maps read before their gates": remove("if consumer.is_cross_channel:\n    ..."),
        },
        "_Walk._make": {
            "squeeze of all channels": replace(
                "self.producers[self._layer(op, _WEIGHTED)] = op",
                "self.producers.setdefault(self._layer(op, _WEIGHTED), op); self.producers = dict(list(self.producers.items())[:1])",
            ),
        },
        "_Walk._follow": {
            "an addend also loses filters": replace("op.kind != 'mul'", "op.kind == 'cat'"),
        },
        "_dependency_of": {
            "every convolution mixes channels": replace("first is None", "False"),
        },
    },
    "graph/filters.py": {
        "_is_of_a_layer": {
            "several products of one module are one layer": replace("len(own) == graph.calls[op.layer]", "True"),
        },
        "_producers": {
            "a producer after an addition is accepted": replace(
                "op.is_cross_channel or op.ends_filters", "op.is_cross_channel"
            ),
        },
    },
    "graph/fusion_patterns.py": {
        "find_fusion_patterns": {
            "called gates: a norm after one is folded into the convolution before it": replace(
                "{path: norm for path, norm in followed_by_norm(graph).items() if path not in gated}",
                "{path: norm for path, norm in followed_by_norm(graph).items()}",
            ),
        },
        "_fusion_pattern": {
            "inference: shared maps are written over": remove("if len(source.consumers) != 1:\n    ..."),
            "called gates: a map that others read is written over": replace(
                "written and (not hooks) and _read_alone(inside[0])", "written and (not hooks)"
            ),
        },
        "_called_once": {
            "inference: a relu called twice is read through": replace(
                "layer is None or path in gated or graph.calls.get(path) != 1 or count_hooks(layer, 'output')",
                "layer is None or path in gated or count_hooks(layer, 'output')",
            ),
            "called gates: gct reads through one": replace(
                "layer is None or path in gated or graph.calls.get(path) != 1 or count_hooks(layer, 'output')",
                "layer is None or graph.calls.get(path) != 1 or count_hooks(layer, 'output')",
            ),
        },
    },
    "graph/graph.py": {
        "own_layers": {
            "places count what is inside gates": replace("id(layer) not in inside", "name or inside"),
        },
        "Graph.of": {
            "a graph with another example is traced with its own": replace("example is not None", "False"),
            "each caller of a shared graph traces it": replace(
                "return model", "return cls(model.model, model.example)"
            ),
        },
        "Graph.why_not_attachable": {
            "a Sequential is gated like any layer": replace("nn.Sequential | nn.ModuleList", "nn.ModuleList"),
        },
        "Graph.why_no_single_map": {
            "a layer with several outputs is gated": replace("len(maps) > 1 and self.calls[path] == 1", "False"),
            "a layer called with several widths is gated": replace("len(widths) > 1", "len(widths) > 9"),
        },
        "Graph._spots": {
            "one ReLU of two maps has a gate for both": replace("self._origin(op) if calls > 1 else ()", "()"),
        },
    },
    "graph/place.py": {
        "_why_unfit": {
            "a layer that is called twice gets a place": replace("here < calls", "False"),
            "calls of different widths have one gate": replace("len({spot.place for spot in own}) > 1", "False"),
        },
        "Places.settled": {
            "a layer that is called twice has two places": replace("spot.place not in self.found", "True"),
            "two maps choose different layers for one gate": replace("not also", "True"),
        },
    },
    "graph/regions.py": {
        "_region": {
            "layers under autocast or no_grad are not found": replace("str(node.target).startswith('wrap_')", "False"),
        },
    },
    "graph/structural_copy.py": {
        "_parts_of": {
            "check leaves its hooks": replace("(copyreg.__newobj__, kind)", "(copyreg.__newobj__,)"),
        },
        "_Copier._owns": {
            "a full copy shares parameters": replace(
                "self._own_parameters and isinstance(value, nn.Parameter) and not is_lazy(value)", "False"
            ),
        },
        "_held_by": {
            "a global variable calls the network itself": replace(
                "[*closed, value.__defaults__, value.__kwdefaults__, vars(value), *named]",
                "[*closed, value.__defaults__, value.__kwdefaults__, vars(value)]",
            ),
        },
        "rehearsal": {
            "torch.fx writes to the network": replace("structural_copy(model)", "model"),
            "check runs in the mode that the network is in": remove("module.training = False"),
            "reading draws random numbers": replace("torch.random.fork_rng([])", "contextlib.nullcontext()"),
            "reading draws random numbers of Python": remove("random.setstate(states[0])"),
        },
        "_Copier._new": {
            "a method of the copy writes to the network": remove(
                "if kind is MethodType:\n    return MethodType(value.__func__, self.copy(value.__self__))"
            ),
        },
        "_Copier._object": {
            "state in an object is shared": replace(
                "vars(copied).update({name: self.copy(attribute) for name, attribute in attributes.items()})",
                "vars(copied).update(attributes)",
            ),
        },
        "_Copier._function": {
            "a closure calls the network itself": replace(
                "new.cell_contents = self.copy(_contents(old))", "new.cell_contents = _contents(old)"
            ),
            "a default argument calls the network itself": remove(
                "copied.__defaults__ = self._led(function.__defaults__)"
            ),
        },
        "_tensor_or_script": {
            "lazy layers get their widths by being read": remove("if is_lazy(value):\n    ..."),
            "check leaves buffers as its forward left them": replace("value.detach().clone()", "value.detach()"),
        },
    },
    "graph/places/before_conv.py": {
        "before_conv": {
            "before_conv takes the width of the output": replace("layer.in_channels", "layer.out_channels"),
            "transposed convolutions are gated by default": replace("TRANSPOSED_CONVOLUTIONS", "nn.Unfold"),
        },
    },
    "graph/places/context.py": {
        "context": {
            "places of context inside a list are ignored": replace(
                "isinstance(layer, ContextPlace)", "isinstance(layer, ContextPlace) and '.' not in name"
            ),
        },
    },
    "graph/places/inner.py": {
        "inner": {
            "inner is after dropout": drop_call("before_dropout"),
            "inner is after the network's own squeeze": drop_call("_before_own_gate"),
        },
        "_why_not_private": {
            "maps that others read too are inner": replace("reader = _other_reader(op, source)", "reader = None"),
            "only the first summand must be private": replace(
                "for source in sources:\n    ...", "for source in sources[:1]:\n    ..."
            ),
        },
        "_other_reader": {
            "a product is not checked": replace("return op", "return None if end.kind == 'mul' else op"),
        },
        "_before_own_gate": {
            "a product with constants counts as a gate of the network": replace(
                "op.kind == 'mul' and len(maps) == 1 and (len(op.inputs) > 1)", "op.kind == 'mul' and len(maps) == 1"
            ),
        },
    },
    "graph/places/residual_end.py": {
        "residual_end": {
            "the flatter branch is the residual one": replace(
                "shallow, deep = sorted(op.inputs, key=lambda branch: _depth(between, branch, _is_weighted))",
                "deep, shallow = sorted(op.inputs, key=lambda branch: _depth(between, branch, _is_weighted))",
            ),
        },
        "_why_no_shortcut": {
            "the first of two equal branches is the residual one": replace("_depth(between, deep, _is_weighted)", "9"),
            "parts of a split map are shortcuts of each other": replace("not between[0].shape", "False"),
            "a summand of any depth is a shortcut": replace(
                "_depth(between, shallow, lambda op: op.is_cross_channel) > 1", "False"
            ),
            "a depthwise layer disqualifies a shortcut": replace(
                "_depth(between, shallow, lambda op: op.is_cross_channel)", "_depth(between, shallow, _is_weighted)"
            ),
            "parallel forms of one layer are residual": replace(
                "depth == 0 and _depth(between, shallow, lambda op: op.kind == 'norm')", "False"
            ),
        },
        "_branch_end": {
            "a residual branch ends before its last norm": replace(
                "op = before_dropout(op)", "op = before_dropout(op); op = op.inputs[0] if op.kind == 'norm' else op"
            ),
        },
    },
    "graph/places/stage_end.py": {
        "stage_end": {
            "stages end one block late": replace(
                "end if following is None else _before_reduction(trunk, end, operations)", "end"
            ),
            "the last stage is forgotten": replace(
                "zip(trunk, [*trunk[1:], None][:len(trunk)], strict=True)", "zip(trunk, trunk[1:], strict=False)"
            ),
        },
        "_trunk": {
            "a map that is returned ends the trunk": replace(
                "(consumer.index for consumer in op.consumers if consumer.kind != 'output')",
                "(consumer.index for consumer in op.consumers)",
            ),
            "a channel shuffle is a resolution": replace(
                "op.is_map and len(op.shape) == rank and (op.kind != 'input') and (furthest <= op.index)",
                "op.is_map and op.kind != 'input' and (furthest <= op.index)",
            ),
        },
    },
    "graph/places/registry.py": {
        "place_names": {
            "places that must be marked count as places of any network": replace("marked or not kind.marked", "True"),
        },
        "register_place": {
            "a place takes the name of another": remove("_registry.check_new(name)"),
        },
    },
    "graph/selection.py": {
        "candidates": {
            "an empty tuple of types means the place of the paper": replace(
                "after if before is None else before", "before or after"
            ),
            "gates are put inside gates": replace("own_layers(graph.model)", "graph.model.named_modules()"),
        },
        "selection": {
            "unknown listed layers accepted": replace("_validation.check_one_of('layer', name, modules)", "pass"),
        },
        "selection.matches": {
            "a listed name means every name that begins like it": replace(
                "path == name or path.startswith(f'{name}.')", "path.startswith(name)"
            ),
            "include must match from the start": replace("re.search", "re.fullmatch"),
        },
        "selection.why_not_selected": {
            "exclude is ignored": replace("exclude is not None and matches(exclude, path)", "False"),
            "where is ignored": replace("where is not None and (not where(path, modules[path]))", "False"),
        },
    },
    "graph/trace.py": {
        "": {
            "torch.fx takes a group norm for a norm of each channel": replace(
                "((nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm), 'mixing')",
                "((nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm), 'norm')",
            ),
        },
        "known_input_size": {
            "grey images are taken for coloured ones": replace("first.in_channels", "of_weights[0]"),
        },
        "Op.is_cross_channel": {
            "a depthwise convolution counts as a reader of all channels": replace(
                "self.is_weighted and (not (self.groups > 1 and self.groups == self.inputs[0].channels))",
                "self.is_weighted",
            ),
            "a grouped convolution counts as depthwise": replace(
                "self.groups > 1 and self.groups == self.inputs[0].channels", "self.groups > 1"
            ),
        },
        "Op.ends_filters": {
            "a sum of filters is a filter": replace(
                "self.kind in {'cat', 'mixing', 'input'} or is_sum", "self.kind in {'cat', 'mixing', 'input'}"
            ),
            "a group norm treated as per channel": replace("{'cat', 'mixing', 'input'}", "{'cat', 'input'}"),
            "a bias counts as a summand": replace("self.kind == 'add' and len(self.inputs) > 1", "self.kind == 'add'"),
        },
        "evaluation_mode": {
            "the analysis leaves the network in eval mode": replace(
                "for module, flag in flags.items():\n    module.training = flag", "flags.clear()"
            ),
            "flags come back only if nothing fails": replace(
                "try:\n    for module in flags:\n        module.training = False\n    yield\nfinally:\n    for module, flag in flags.items():\n        module.training = flag",
                "for module in flags:\n    module.training = False\nyield\nfor module, flag in flags.items():\n    module.training = flag",
            ),
        },
        "example_inputs": {
            "inputs are guessed in single precision": remove("dtype=anchor.dtype"),
        },
        "trace": {
            "places are those of the network with its gates": remove("_set_gates_aside(copied)"),
            "gates stay set aside after the analysis": replace("_set_gates_aside(copied)", "_set_gates_aside(model)"),
            "one tensor that is given twice is one input": drop_call("_distinct"),
            "torch's records come before the message": replace("without_logs_of('torch')", "contextlib.nullcontext()"),
            "torch.fx is never tried": replace("(_read_export, _read_fx)", "(_read_export,)"),
            "an example is ignored": replace("example is None", "True"),
            "a network whose values decide is read for every size": remove("if values_decide(error):\n    ..."),
        },
        "_operations": {
            "a module of two names is two modules": replace("names.get(path, path)", "path"),
            "called gates: read twice is read once": replace("_reads(node)", "node.all_input_nodes"),
            "torch.fx counts assertions as consumers": remove(
                "if node.op != 'output' and _value(node) is None:\n    ..."
            ),
            "torch.fx counts layers that do nothing": replace("nn.Identity", "nn.Unfold"),
        },
        "_channel_axis": {
            "linear layers keep the channel axis": replace(
                "kind == 'linear' or ('layer_norm' in str(node.target) and inputs and (len(inputs[0].shape) == len(shape)))",
                "'layer_norm' in str(node.target) and inputs and (len(inputs[0].shape) == len(shape))",
            ),
            "a reshape moves the channels to the front": replace(
                "axes[0] if axes and math.prod(shape) == math.prod(old) else 1", "1"
            ),
        },
    },
}
