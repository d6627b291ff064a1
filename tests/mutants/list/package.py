"""Mutants of the modules at the top of the package."""

from mutants import drop_call, flip, remove, replace, swap

CHANGES = {
    "core/registry.py": {
        "Registry.names": {
            "a registry that a package above fills is empty": remove("if self.filled_by:\n    ..."),
        },
    },
    "__main__.py": {
        "main": {
            "signal after the end counts as a failure": replace("signal.signal(number, signal.SIG_IGN)", "pass"),
            "traceback without cyclopts": replace("ModuleNotFoundError", "ZeroDivisionError"),
        },
    },
    "core/_validation.py": {
        "_Shown.__init__": {
            "nested lists are shown completely": replace("self.maxlevel = 3", "self.maxlevel = 30"),
        },
        "safe_repr": {
            "an error shows the complete value": replace("len(text) <= _LONGEST", "True"),
        },
        "check_module": {
            "any object is a network": replace("not isinstance(model, torch.nn.Module)", "False"),
        },
        "check_seed": {
            "a seed may be true": replace("value is not None", "False"),
        },
        "check_bool": {
            "a text counts as true": replace("not isinstance(value, bool)", "False"),
        },
        "check_feature_map": {
            "error without the f of its string": replace(
                "f'{owner} expects floating-point input, got {x.dtype}. Convert it first, for example x.float() / 255.'",
                "'{owner} expects floating-point input, got {x.dtype}. Convert it first, for example x.float() / 255.'",
            ),
            "a proxy of torch.fx reaches a gate": remove("check_not_symbolic(owner, x)"),
        },
        "check_fits_in_memory": {
            "networks of any size are built": replace("count is None or count > _MOST_NUMBERS", "count is None"),
        },
        "check_format_number": {
            "newer formats are read": replace("found > newest", "False"),
        },
    },
    "models/stored_spec.py": {
        "in_full": {
            "the number of classes is stored twice": replace("name not in elsewhere", "True"),
            "options of the network are not stored": replace(
                "{**defaults, **spec.model_options}", "spec.model_options"
            ),
        },
        "as_stored": {
            "an older spec gets a new default": replace(
                "{**_EARLIER_DEFAULTS.get(choice.name, {}), **choice.options}", "choice.options"
            ),
        },
        "_gate_in_full": {
            "options of a gater are not stored": replace("not choice.is_gater", "True"),
        },
        "_other": {
            "options that were given are not shown": replace("value != defaults[name]", "False"),
        },
    },
    "core/loaders.py": {
        "batches_of": {
            "single images are batches": replace("isinstance(labels, Tensor) and (not labels.dim())", "False"),
            "a batch has labels of others": replace("len(labels) != len(images)", "False"),
        },
        "first_batches": {
            "a loader is read to its end": remove("if left is not None and left <= 0: ..."),
            "more images than asked for": replace("images[:left]", "images"),
        },
    },
    "core/seeding.py": {
        "seeded": {
            "the seed is ignored": replace(
                "torch.default_generator.manual_seed(seed)", "torch.default_generator.seed()"
            ),
            "the seed touches the global generator": replace("enabled=seed is not None", "enabled=False"),
            "the seed touches the generators of GPUs": replace("torch.default_generator", "torch"),
        },
    },
    "core/hooks.py": {
        "_OnInput.__call__": {
            "layers called by keyword are not gated": replace(
                "{**named, self.argument: self.change(layer, named[self.argument])}", "named"
            ),
            "keyword arguments are lost": replace(
                "{**named, self.argument: self.change(layer, named[self.argument])}", "named"
            ),
        },
        "count_hooks": {
            "hooks on the input are not counted": replace(
                "(_DICTIONARIES if side is None else (side,))", "('output',)"
            ),
        },
    },
    "core/_torch_compat.py": {
        "_transform_rejects_function": {
            "no transform without torch's private name": replace("return True", "return False"),
        },
        "without_stack_traces": {
            "lines of code are looked up": replace("config.do_not_emit_stack_traces = True", "pass"),
            "lines of code stay left out": replace("config.do_not_emit_stack_traces = before", "pass"),
        },
        "_called_by_backward": {
            "the end of a backward pass is a part of it": replace("return frame is not None", "return True"),
        },
        "has_memory": {
            "batched gradients reach a kernel": replace("return False", "return True"),
        },
        "enclosing_calls": {
            "the network itself is a layer": replace(
                "{call: str(path) for call, (path, _) in stack.items() if path}",
                "{call: str(path) for call, (path, _) in stack.items()}",
            ),
        },
        "version_of": {
            "in-place changes are not noticed": replace("getattr(x, '_version', math.nan)", "0"),
        },
        "Float32Buffers._apply": {
            "constants lose their values in to_empty": replace(
                "setattr(self, name, constant.to(now.device, torch.promote_types(now.dtype, torch.float32)))",
                "setattr(self, name, now)",
            ),
            "a budget counts in 16 bits": replace("before.items()", "()"),
        },
        "MoveObserver._apply": {
            "moves are not noticed": remove("self.before_move()"),
        },
        "tensors_by_name": {
            "a replica has no parameters": replace("getattr(part, '_former_parameters', {})", "{}"),
        },
        "packed_operators": {
            "changed operators are used": replace("y.item() == 2", "True"),
        },
        "count_flops_as_convolution": {
            "packed convolutions are not counted": replace("count(x_shape, w_shape, out_shape)", "0"),
        },
    },
    "models/create.py": {
        "make_model": {
            "backbone's weights depend on the gater": replace("seed=seed", "seed=(seed or 0) + len(gaters)"),
        },
    },
    "comparison/cluster.py": {
        "train_on_cluster": {
            "finished runs sent to the cluster": replace(
                "{folder: recipe for folder, recipe in recipes.items() if not _is_finished(recipe, folder)}",
                "{folder: recipe for folder, recipe in recipes.items()}",
            ),
        },
        "_connect": {
            "Ray address not checked": remove("_check_reachable(address)"),
        },
        "_Runs.__init__": {
            "no GPU for a run": replace("1 if gpus else 0", "0"),
        },
        "_Runs._stop": {
            "tasks left running": replace("self.ray.cancel(task)", "pass"),
        },
        "_Runs._take": {
            "a lost run ends the comparison": replace("exceptions.RayError", "KeyError"),
            "runs of different precisions compared": remove("check_trained_alike(self.trained_by)"),
            "a folder of another machine used as one of this machine": replace(
                "not _is_finished(recipe, folder)", "False"
            ),
        },
        "_Runs._show_epochs": {
            "epochs reported again": remove("self.seen[folder] = max(self.seen[folder], len(rows))"),
        },
        "_task": {
            "the task is pickled by its name": remove("task.__name__ = task.__qualname__ = 'train_run'"),
            "a machine without gatewise fails with a traceback": replace("ImportError", "ZeroDivisionError"),
        },
        "train_run": {
            "a failed run reported as invalid": replace("{'failed': str(error)}", "{'invalid': str(error)}"),
            "a full disk reported for each run": replace("{'unsaved': f'{host}: {error}'}", "{'failed': str(error)}"),
            "a machine without the folder trains on its own disk": replace(
                "if missing:\n    ...", "if False:\n    ..."
            ),
        },
    },
    "errors.py": {
        "GatewiseError.__str__": {
            "an error has unlimited length": replace("len(text) <= _MAX_LENGTH", "True"),
        },
    },
    "core/deviation.py": {
        "largest_error": {
            "NaN and infinity in a file agree with every number": replace("bool(alike.all())", "True"),
            "any values that are not finite are equal": replace(
                "(found == expected) | (found.isnan() & expected.isnan())", "~expected.isfinite()"
            ),
        },
    },
    "core/hub_connection.py": {
        "cache_if_unreachable": {
            "the hub's client waits for a connection": replace("(problem := _why_unreachable()) is None", "True"),
            "errors of other servers are blamed on the hub": replace(
                "(ConnectionError, LocalEntryNotFoundError)", "OSError"
            ),
            "the hub stays cut off": remove("constants.HF_HUB_OFFLINE = before"),
        },
        "_why_unreachable": {
            "the hub is never asked": remove("session.head(constants.ENDPOINT, timeout=_TIMEOUT)"),
        },
    },
    "core/files.py": {
        "write_atomically": {
            "file renamed before it is written": replace(
                "file.write(content)", "temporary.replace(path); file.write(content)"
            ),
            "incomplete file under its final name for a moment": replace(
                "temporary.replace(path)",
                "path.write_bytes(content[:len(content) // 2]); os.fsync(os.open(path, os.O_RDWR)); temporary.replace(path)",
            ),
            "links are replaced": remove("path = path.resolve() if path.is_symlink() else path"),
            "renames are not flushed": remove("flush_folder(path.parent)"),
            "non-atomic write": replace("temporary.open", "path.open"),
            "no flush to disk": remove("os.fsync(file.fileno())"),
            "stray part file": replace("temporary.unlink(missing_ok=True)", "pass"),
            "target written before it is complete": replace(
                "with temporary.open('wb') as file:\n    ...",
                "path.write_bytes(content)\nwith temporary.open('wb') as file:\n    ...",
            ),
        },
        "beside_name": {
            "writers share a name": replace(
                "f'.{path.name}.{secrets.token_hex(4)}.{os.getpid()}.part'",
                "f'.{path.name}.0123abcd.{os.getpid()}.part'",
            ),
        },
        "new_folder": {
            "half a state left on a full disk": replace("shutil.rmtree(temporary, ignore_errors=True)", "pass"),
            "a folder has its name before it is filled": replace(
                "yield temporary\nwith contextlib.suppress(OSError):\n    folder.rmdir()\ntemporary.rename(folder)",
                "temporary.rename(folder); yield folder",
            ),
            "state written in place": drop_call("beside_name"),
        },
        "check_folder_writable": {
            "a file taken for a folder": remove("check_is_folder(folder)"),
        },
        "check_file_writable": {
            "a folder taken for a file": replace("file.is_dir()", "False"),
            "a device taken for a file": remove("_check_no_device(file)"),
        },
        "_try_to_write": {
            "folder made by the writability check": replace(
                "while not path.parent.exists(): path = path.parent", "path.parent.mkdir(parents=True, exist_ok=True)"
            ),
        },
        "held": {
            "held: no lock": replace("lock.acquire()", "pass"),
            "held: disks without locks rejected": replace(
                "isinstance(error, PermissionError) and file.exists()", "file.exists()"
            ),
            "held: another's lock is no lock": replace("isinstance(error, PermissionError) and file.exists()", "False"),
            "held: the lock's file stays": remove("file.unlink(missing_ok=True)"),
            "held: empty folders stay": replace("parent.rmdir()", "pass"),
            "held: any empty folder is removed": replace(
                "[parent for parent in (folder, *folder.parents) if not parent.exists()]",
                "[parent for parent in (folder, *folder.parents)]",
            ),
        },
        "remove_leftovers": {
            "half a file left by a kill": replace("leftover.unlink(missing_ok=True)", "pass"),
            "files of a running process are removed": replace(
                "match is None or _is_alive(int(match[1]))", "match is None"
            ),
        },
        "read_json": {
            "deep JSON is a traceback": replace("(ValueError, RecursionError)", "ValueError"),
        },
        "read_bytes": {
            "a device is read to its end": replace("not stat.S_ISREG(path.stat().st_mode)", "False"),
        },
    },
    "gates/functional.py": {
        "at_least_float32": {
            "half types are reduced in half precision": drop_call("promote_types"),
        },
        "attention_weights": {
            "gc: softmax over the batch": replace(
                "weights.sum(axes, keepdim=True)", "weights.sum((0, *axes), keepdim=True)"
            ),
            "gc: softmax overflows": replace("logits - logits.amax(axes, keepdim=True)", "logits"),
        },
        "semhash": {
            "semhash: one coin for the batch": replace("len(logits)", "1"),
            "semhash: no straight-through": drop_call("straight_through"),
            "semhash: sigmoid not saturating": replace(
                "(1.2 * torch.sigmoid(logits) - 0.1).clamp(0, 1)", "torch.sigmoid(logits)"
            ),
            "semhash: a tie is closed": replace("soft > 0.49999", "soft > 0.5"),
        },
        "gumbel_sigmoid": {
            "gumbel: uniform noise": replace("logits + uniform.log() - (-uniform).log1p()", "logits + uniform"),
        },
    },
    "exporting/hub.py": {
        "PretrainedNet.of_run": {
            "the size of a shared segmenter's images is lost": replace("net.config['scale'] = opened.scale", "pass"),
        },
        "PretrainedNet.save_pretrained": {
            "a card is overwritten": replace("file != _CARD or not (folder / file).exists()", "True"),
        },
        "PretrainedNet._write": {
            "a shared network is not built again before it is written": replace("load_model(temporary)", "pass"),
        },
    },
    "insertion/insert.py": {
        "without_gates": {
            "the form without gates has them": replace("isinstance(module, Gate)", "False"),
        },
        "insert_all": {
            "each of several gates traces the network": replace(
                "insert_gates(graph, choice)", "insert_gates(model, choice, example=example)"
            ),
        },
        "Insertion.undo": {
            "undo forgets the hooks": remove("for handle in self._handles:\n    ..."),
            "undo leaves the gates in the network": drop_call("detach"),
            "a compiled network keeps gates after undo": remove("_forget_compiled()"),
        },
        "Insertion.complete": {
            "only the first insertion accepts plain checkpoints": replace(
                "self._handles += accept_plain_checkpoints(self.model, self.gates)",
                "if not self.model._load_state_dict_post_hooks:\n    self._handles += accept_plain_checkpoints(self.model, self.gates)",
            ),
            "a network compiled before runs without new gates": remove("_forget_compiled()"),
            "lost gates are not noticed": remove("self._handles += keep_attached(self.model, self.attachments)"),
        },
        "insert_gates": {
            "matching nothing is silent": replace("not places", "not places and False"),
            "place and before may be given together": replace("(one.asked, before, after)", "(before, after)"),
            "traced networks get gates that never run": drop_call("_check_can_be_gated"),
        },
        "_inserted": {
            "a failed insertion is not undone": remove("insertion.undo()"),
            "a gate inserted twice is not mentioned": replace("if repeated:\n    ...", "if False:\n    ..."),
        },
        "_wanted": {
            "the argument overrides a place in the string": replace(
                "place and choice.place and (place != choice.place)", "False and choice.place"
            ),
            "options of several gates are given to each": replace("len(choices) > 1 and options", "False"),
        },
        "_repeats": {
            "another kind of gate counts as a repetition": replace(
                "type(getattr(layer, call.gate)) is type(new.gate)", "True"
            ),
        },
        "_attach": {
            "an output gate ignores the channel axis": replace("place.channel_axis", "1"),
            "gates ignore the mode of their layer": remove("gate.train(layer.training)"),
            "gates ignore the type of their layer": remove("dtype=anchor.dtype"),
            "gates of any rank are two-dimensional": replace(
                "{} if place.spatial_dims == 2 else {'spatial_dims': place.spatial_dims}", "{}"
            ),
        },
    },
    "insertion/graph_modules.py": {
        "_twin_in_graph_module": {
            "fusing by torch.fx loses gates": replace("add_mixin(twin, GatedTwin)", "pass"),
            "layers are replaced outside GraphModules": replace(
                "type(parent) is nn.Module or isinstance(parent, fx.GraphModule)", "True"
            ),
            "a layer with gates and its twin have two modes": replace(
                "object.__setattr__(twin, '__dict__', child.__dict__)", "twin.__dict__.update(child.__dict__)"
            ),
            "gates of a replaced layer in a GraphModule are forgotten": remove("_move_gates(name, replaced, child)"),
        },
        "_move_gates": {
            "a gate is called twice by a layer around its layer": replace(
                "layers_with_change(new, side, call)", "False"
            ),
            "any layer takes the gates of a twin": replace("normalised_channels(new) == channels", "True"),
            "a frozen norm in a GraphModule has no hook": drop_call("change_map"),
        },
    },
    "insertion/plain_checkpoints.py": {
        "accept_plain_checkpoints": {
            "plain checkpoints are rejected inside another module": replace(
                "modules_around(model, [names_of(path) for path in gates]).values()", "[]"
            ),
            "a part of the network rejects plain checkpoints": replace(
                "modules_around(model, [names_of(path) for path in gates]).values()", "[model]"
            ),
        },
        "_AcceptPlainCheckpoint.before_load": {
            "missing gates are accepted one by one": replace("state.keys().isdisjoint(values)", "True"),
            "every missing key is accepted": replace(
                "state.update(values)", "state.update({**module.state_dict(prefix=prefix), **state, **values})"
            ),
            "gates of a part count as given when the whole is loaded": remove("if self.missing is missing:\n    ..."),
            "all insertions accept missing gates together": replace(
                "getattr(gate, _INSERTION, None) == self.insertion", "hasattr(gate, _INSERTION)"
            ),
            "a gate has keys under one name only": replace("remove_duplicate=False", "remove_duplicate=True"),
        },
        "_AcceptPlainCheckpoint.after_load": {
            "gates on the meta device get no values": remove("materialise_gates(module)"),
        },
    },
    "insertion/attachment.py": {
        "attach": {
            "the hook keeps the gate instead of its name": replace(
                "CallGate(unique, channel_axis, uuid.uuid4().hex)", "lambda _, x, kept=gate: kept(x)"
            ),
            "a gate overwrites an attribute of its name": replace("hasattr(layer, unique)", "False"),
        },
        "detach": {
            "gates on replaced layers remain": replace("child is attachment.gate", "False"),
        },
        "Attachment.holds": {
            "a layer without a hook holds its gate": replace("count_change(layer, self.side, self.call) == 1", "True"),
            "a gate called twice is accepted": replace(
                "count_change(layer, self.side, self.call) == 1", "count_change(layer, self.side, self.call) >= 1"
            ),
        },
        "_keep_attached": {
            "a lost gate is named in every forward": replace("tuple(kept)", "tuple(kept + lost)"),
            "a lost gate is not named": replace("if lost:\n    ...", "if False:\n    ..."),
            "every part of a network names a lost gate": replace("hook.path", "False", nth=1),
        },
        "keep_attached": {
            "only the network itself keeps its gates attached": replace(
                "modules_around(model, [attachment.layer for attachment in attachments])", "{(): model}"
            ),
        },
        "_attached_again": {
            "copied children get no hook": replace("child is old.gate", "False"),
            "hooks that moved without their gate are forgotten": replace(
                "type(layers[path]).forward is not nn.Sequential.forward", "False"
            ),
            "a frozen norm loses the gates of its norm": replace("old.normalised", "None", nth=1),
            "any layer takes the gates of a norm": replace(
                "normalised_channels(layers.get(path)) == old.normalised", "True"
            ),
            "a hook that moved runs the gate a second time": replace("path not in candidates[:1]", "False"),
        },
    },
    "graph/measure.py": {
        "macs_per_sample": {
            "flops as multiply-adds": replace("2 * len(example)", "len(example)"),
            "multiply-adds of the batch": replace("2 * len(example)", "2"),
            "counting in train mode": replace("rehearsal(model)", "contextlib.nullcontext(model)"),
        },
        "expected_seconds": {
            "calls that are not timed take no time": replace("_UNCOUNTED + calls", "calls"),
        },
        "_timers": {
            "times do not wait for a GPU": replace(
                "{} if clock is None else {'timer': clock}", "{'timer': clock or __import__('time').perf_counter}"
            ),
        },
        "interleaved_latency": {
            "latency not interleaved": replace(
                "for _ in range(rounds):\n    for name, timer in timers.items():\n        seconds[name].append(timer.timeit(calls[name]).mean)",
                "for name, timer in timers.items():\n    for _ in range(rounds):\n        seconds[name].append(timer.timeit(calls[name]).mean)",
            ),
        },
        "environment": {
            "threads not part of the machine's key": replace(
                "counted(torch.get_num_threads(), 'thread')",
                "'some threads'",
            ),
        },
    },
    "exporting/model_card.py": {
        "_shareable": {
            "the card has local paths": replace("key in paths", "False"),
        },
    },
    "exporting/prediction.py": {
        "Predictor.logits": {
            "outputs without a name are predicted": replace("logits.shape[:2] != expected[:2]", "False"),
            "predictions without normalisation": replace("(pixels - mean) / std", "pixels / 255"),
        },
        "Predictor.predict": {
            "masks overwrite each other": remove("_check_not_overwriting(files, Path(out))"),
            "images that cannot be read are passed over in silence": remove("if unread: ..."),
        },
        "_check_not_overwriting": {
            "masks among the images": replace("out.resolve() in {file.parent.resolve() for file in files}", "False"),
        },
    },
    "insertion/pruning.py": {
        "GatePruner.prune_out_channels": {
            "a pruner keeps the removed channels": flip("channel not in removed"),
            "a pruned gate expects its old width": remove("layer.set_channels(len(kept))"),
        },
    },
    "gates/registry.py": {
        "bottleneck_width": {
            "a bottleneck of no channels": replace(
                "max(1, int(channels * rd_ratio) // rd_divisor)", "int(channels * rd_ratio) // rd_divisor"
            ),
        },
    },
    "exporting/run_compaction.py": {
        "compact_run": {
            "half a compacted run stays": replace(
                "with new_folder(out) as temporary:\n    ...", "out.mkdir(); temporary = out\nif True:\n    ..."
            ),
        },
    },
    "core/schema.py": {
        "": {
            "a deviation may be zero": replace("Meta(ge=1e-06, le=1000000.0)", "Meta(ge=-1000000.0, le=1000000.0)"),
        },
        "Metrics": {
            "scores of classes are not looked at": replace("dict[str, Fraction | None]", "dict[str, Any]"),
        },
        "Metrics.__post_init__": {
            "an environment need not name its hardware": replace("'hardware' not in self.environment", "False"),
        },
        "checked_metrics": {
            "metrics are not checked": replace(
                "score = of_file(file, metrics, Metrics).score", "score = metrics.get('score', 'accuracy')"
            ),
            "the score need not be in the metrics": replace("score not in metrics", "False"),
        },
        "Config.__post_init__": {
            "deviations need not be as many as channels": replace(
                "(('mean', 'in_chans'), ('std', 'in_chans'))", "(('mean', 'in_chans'),)"
            ),
        },
        "convert": {
            "unknown entries are ignored": remove("_check_known(owner, values, kind)"),
        },
        "_explained": {
            "another entry is shown": replace("values[attribute or int(index)]", "values"),
        },
    },
    "models/serialization.py": {
        "": {
            "an older version's checksum is handed on": replace("{FORMAT, 'values_sha256'}", "{FORMAT}"),
        },
        "write_metrics": {"an undefined score loses a training": replace("without_nan(values)", "values")},
        "_without_config": {
            "a comparison is opened as a run": remove("if (folder / RESULTS).exists():\n    ..."),
        },
        "read_config": {
            "a config is not checked": remove("checked_details(folder / CONFIG, config)"),
        },
        "load_model": {
            "loaded model left in train mode": drop_call("eval"),
        },
        "_built": {
            "compaction forgotten when loading": replace("'compacted'", "'compact'"),
            "pretrained weights fetched again": replace(
                "{key: value for key, value in spec.model_options.items() if key != 'pretrained'}",
                "{key: value for key, value in spec.model_options.items()}",
            ),
        },
        "of_gater_net": {
            "a segmenter's names treated as a gater's": replace(
                "name.startswith('gater.')", "name.startswith('backbone.')"
            ),
        },
        "read_source": {
            "sha256 of a network's weights not compared": replace(
                "read_tensors(file, config.get('sha256'))", "read_tensors(file)"
            ),
            "config of initial weights not checked": remove("checked_details(source / CONFIG, config)"),
        },
        "not_finite": {
            "statistics of minus infinity accepted": replace(
                "~buffer.isfinite() if statistic else buffer.isnan() | buffer.isposinf()",
                "buffer.isnan() | buffer.isposinf()",
            ),
        },
        "read_tensors": {
            "checksum not verified": replace("sha256 is not None and actual != sha256", "False"),
        },
    },
    "gates/spec.py": {
        "": {
            "the colon of a hub name begins options": replace(
                "'((?:(?:hf-hub|hf_hub|timm):)?[^:]*)(?::(.*))?'", "'((?:(?:hf_hub|timm):)?[^:]*)(?::(.*))?'"
            ),
        },
        "parse_value": {
            "fractions are read as text": remove("if (fraction := _FRACTION.fullmatch(text)):\n    ..."),
        },
        "ModelSpec.parse": {
            "presets of timm are unknown": replace("PRESETS.get(name.removesuffix(f'.{TAG}'))", "None"),
        },
        "format_value": {
            "true is written as True": replace("value is None or isinstance(value, bool)", "value is None"),
        },
        "format_choice": {
            "large numbers are written with a plus": drop_call("replace"),
        },
        "GateChoice.__post_init__": {
            "an expression split by the grammar": replace("set('+,@')", "set()"),
            "options are checked only when the gate is made": drop_call("make"),
        },
        "GateChoice.__str__": {
            "the place is not written": replace(
                "format_choice(self.name, self.options) + (f'@{self.place}' if self.place else '')",
                "format_choice(self.name, self.options)",
            ),
        },
        "parse_gates_list": {
            "a comma always separates networks": replace("continues", "False"),
            "gates may be listed twice": replace("if repeated:\n    ...", "if False:\n    ..."),
            "the same gate compared with itself": replace(
                "[tuple((choice.in_full for choice in gates)) for gates in chosen]", "chosen"
            ),
        },
        "ModelSpec.from_dict": {
            "a dictionary forgets places": replace(
                "GateChoice(gate.gate, _tuples(gate.options), gate.place)",
                "GateChoice(gate.gate, _tuples(gate.options))",
            ),
        },
        "_Gate": {
            "unknown keys of a gate are ignored": replace("forbid_unknown_fields=True", "forbid_unknown_fields=False"),
        },
        "_Spec": {
            "a spec without a model is a KeyError": replace("model: Name", "model: Name = None"),
        },
    },
    "models/weights/transfer.py": {
        "load_backbone": {
            "a backbone's weights in another order": swap("own | kept"),
            "missing tensors of a backbone stay fresh": replace("if missing:\n    ...", "if False:\n    ..."),
        },
        "_unflattened": {
            "names that timm changes are not found": replace(
                "f'{stem}.{number}.{rest}' if number.isdecimal() else name", "name"
            ),
        },
    },
    "insertion/mixins.py": {
        "remove_mixin": {
            "removing one mixin removes all": replace("tuple(other for other in mixins if other is not mixin)", "()"),
        },
    },
    "insertion/loss.py": {
        "GateLoss.__init__": {
            "the network is registered a second time": replace("(model,)", "nn.ModuleList([model])"),
        },
        "GateLoss.forward": {
            "GateLoss takes the first loss alone": replace("functools.reduce(torch.add, losses)", "losses[0]"),
            "accumulated batches have the gates' loss each": replace("items is None", "True"),
            "targets without a class are items": replace("args[1].ne(_IGNORED).sum()", "args[1].numel()"),
        },
        "GateLoss._warn_if_missing": {
            "a missing loss of gates goes unnoticed": replace("self.model.training", "False"),
            "networks without a loss of their own warn": replace("own is not Gate.extra_loss", "True"),
        },
    },
    "insertion/synchronised.py": {
        "check_not_synchronised": {
            "gates are inserted among the parameters of fully_shard": replace(
                "any(hasattr(kind, name) for name in _METHODS)", "False"
            ),
        },
    },
    "insertion/frozen_layers.py": {
        "Record.flag": {
            "renamed parameters stay frozen": replace("_RENAMED.sub('', known) == tensor", "False"),
        },
        "_with_parametrisations": {
            "parametrised parameters stay frozen": replace("parametrize.is_parametrized(layer)", "False"),
        },
        "KeepsStatistics.train": {
            "frozen norms follow model.train()": remove("self.training = False"),
            "gates inside frozen norms are frozen with them": replace(
                "super().train(mode)", "super().train(mode=False)"
            ),
        },
        "_keep_frozen": {
            "a part that was thawed is frozen again": replace("record.origin.thawed", "False"),
            "parameters whose parametrisation was removed stay frozen": replace(
                "names[-2:-1] == (_PARAMETRIZATIONS,)", "False"
            ),
        },
        "_take_place": {
            "norms in the place of frozen ones are trained": replace(
                "is_norm and normalised_channels(layer) is not None", "False"
            ),
            "a new head of a frozen network gets the flags of the old one": replace("name in frozen", "True"),
        },
        "flags_before": {
            "layers in the place of frozen ones stay frozen": remove("hand_over_records(model)"),
        },
        "thaw": {
            "norms stay frozen when everything is trained": remove("remove_mixin(layer, KeepsStatistics)"),
        },
    },
    "insertion/tuning.py": {
        "trainable_parameters": {
            "what is frozen now is never trained": replace("frozen.get(id(p), p.requires_grad)", "p.requires_grad"),
        },
        "set_total_steps": {
            "a continued schedule starts again": remove("buffer.copy_(value)"),
            "a new schedule continues": replace("not restart", "restart"),
        },
        "_exempt": {
            "beta decays": replace("gate.no_weight_decay", "()"),
            "every parameter named beta does not decay": replace("name in names", "name in names or 'beta' in name"),
            "the network's declarations are ignored": replace("declared() if callable(declared) else ()", "()"),
            "a part's no_weight_decay forgotten": replace("model.modules()", "[model]"),
        },
        "no_weight_decay_names": {
            "everything exempt from decay": replace(
                "{name for name, parameter in model.named_parameters() if id(parameter) in exempt}",
                "{name for name, parameter in model.named_parameters()}",
            ),
        },
        "parameter_groups": {
            "frozen parameters are handed to the optimizer": replace(
                "[p for p in model.parameters() if p.requires_grad]", "list(model.parameters())"
            ),
            "without a weight decay nothing decays": replace(
                "if weight_decay is not None:\n    decay['weight_decay'] = weight_decay",
                "decay['weight_decay'] = weight_decay or 0.0",
            ),
        },
        "train_only_gates": {
            "gates' own norms are frozen": replace(
                "isinstance(getattr(layer, 'running_mean', None), Tensor) and id(layer) not in inside",
                "isinstance(getattr(layer, 'running_mean', None), Tensor)",
            ),
            "freezing leaves the backbone trainable": replace(
                "parameter.requires_grad_(id(parameter) in own)", "parameter.requires_grad_(True)"
            ),
            "freezing twice forgets what was frozen before": replace(
                "before.get(id(parameter), parameter.requires_grad)", "parameter.requires_grad"
            ),
        },
        "train_everything": {
            "parameters that DDP does not synchronise are thawed": remove("_check_flags_can_change(model)"),
        },
        "Stage.begin": {
            "first stage trains everything": replace("train_only_gates", "train_everything"),
            "second stage stays frozen": replace("train_everything(model)", "pass"),
        },
        "gate_loss": {
            "gate_loss takes the first loss alone": replace("functools.reduce(torch.add, losses)", "losses[0]"),
            "gate_loss is cut off from the gates": replace(
                "functools.reduce(torch.add, losses)", "functools.reduce(torch.add, losses).detach()"
            ),
        },
    },
}
