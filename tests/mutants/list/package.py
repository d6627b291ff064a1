"""Mutants of the modules at the top of the package."""

from mutants import drop_call, flip, remove, replace, swap

CHANGES = {
    "__main__.py": {
        "main": {
            "signal behind the end counts as a failure": replace("signal.signal(number, signal.SIG_IGN)", "pass"),
            "traceback without cyclopts": replace("ModuleNotFoundError", "ZeroDivisionError"),
        },
    },
    "_checks.py": {
        "GatewiseError.__str__": {
            "a refusal is as long as it likes": replace("len(text) <= _LONGEST_REFUSAL", "True"),
        },
        "_Shown.__init__": {
            "a list of lists of lists is shown whole": replace("self.maxlevel = 3", "self.maxlevel = 30"),
        },
        "shown": {
            "a refusal shows all that came": replace("len(text) <= _LONGEST", "True"),
        },
        "network": {
            "any object is a network": replace("not isinstance(model, torch.nn.Module)", "False"),
        },
        "seed": {
            "a seed may be true": replace("value is not None", "False"),
        },
        "boolean": {
            "a word counts as yes": replace("not isinstance(value, bool)", "False"),
        },
        "feature_map": {
            "refusal without the f of its string": replace(
                "f'{owner} expects floating-point input, got {x.dtype}. Convert it first, for example x.float() / 255.'",
                "'{owner} expects floating-point input, got {x.dtype}. Convert it first, for example x.float() / 255.'",
            ),
            "a proxy of torch.fx reaches a gate": remove("no_symbolic_trace(owner, x)"),
        },
        "affordable": {
            "networks of any size are built": replace("count is None or count > _MOST_NUMBERS", "count is None"),
        },
        "known_format": {
            "newer formats read as if known": replace("found > newest", "False"),
        },
    },
    "archive.py": {
        "": {
            "an archive may call anything of torch": replace(
                "'torch\\\\.ops\\\\.aten\\\\.(?!from_file|set_|set\\\\b)\\\\w+(\\\\.\\\\w+)?|torch\\\\.ops\\\\.higher_order\\\\.(cond|while_loop|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)|_operator\\\\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|lshift|rshift)|math\\\\.(ceil|floor|trunc|sqrt)|torch\\\\.sym_\\\\w+|torch\\\\._sym_sqrt'",
                "'torch\\\\.[\\\\w.]+|torch\\\\.ops\\\\.higher_order\\\\.(cond|while_loop|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)|_operator\\\\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|lshift|rshift)|math\\\\.(ceil|floor|trunc|sqrt)|torch\\\\.sym_\\\\w+|torch\\\\._sym_sqrt'",
            ),
            "an archive names its inputs in Python": replace(
                "{'node': _node, 'expr_str': _code, 'guards_code': _guards, 'range_constraints': _names_of_symbols, 'in_spec': _structure, 'out_spec': _structure, 'forward_arg_names': _identifiers, 'as_custom_obj': _nothing, 'custom_obj_name': _nothing, 'treespec_namedtuple_fields': _nothing}",
                "{'node': _node, 'expr_str': _code, 'guards_code': _guards, 'range_constraints': _names_of_symbols, 'in_spec': _structure, 'out_spec': _structure, 'as_custom_obj': _nothing, 'custom_obj_name': _nothing, 'treespec_namedtuple_fields': _nothing}",
            ),
            "an archive has guards of any kind": replace(
                "{'node': _node, 'expr_str': _code, 'guards_code': _guards, 'range_constraints': _names_of_symbols, 'in_spec': _structure, 'out_spec': _structure, 'forward_arg_names': _identifiers, 'as_custom_obj': _nothing, 'custom_obj_name': _nothing, 'treespec_namedtuple_fields': _nothing}",
                "{'node': _node, 'expr_str': _code, 'range_constraints': _names_of_symbols, 'in_spec': _structure, 'out_spec': _structure, 'forward_arg_names': _identifiers, 'as_custom_obj': _nothing, 'custom_obj_name': _nothing, 'treespec_namedtuple_fields': _nothing}",
            ),
        },
        "checked_archive": {
            "an archive has two entries of one name": replace(
                "len(set(names)) < len(names) or any((info.compress_type != zipfile.ZIP_STORED for info in infos))",
                "any((info.compress_type != zipfile.ZIP_STORED for info in infos))",
            ),
        },
        "_inputs": {
            "an archive may hold pickles": flip("True"),
        },
        "_payloads": {
            "an archive has pickled weights": replace("payload.get('use_pickle') is not False", "False"),
        },
        "_code": {
            "powers of powers": replace(
                "powers <= _MOST_POWERS and all(map(_is_arithmetic, nodes))", "all(map(_is_arithmetic, nodes))"
            ),
        },
        "_is_arithmetic": {
            "an archive has attributes in its sizes": replace("node.attr in _READ", "True"),
        },
        "_structure": {
            "an archive has structures of any type": replace(
                "known and plain and all((context in (None, 'null', '[]') for context in contexts))", "known and plain"
            ),
        },
    },
    "assembly.py": {
        "make_model": {
            "backbone's weights depend on the gater": replace("seed=seed", "seed=(seed or 0) + len(gaters)"),
        },
    },
    "card.py": {
        "_told": {
            "the card tells the folders of this machine": replace("key in paths", "False"),
        },
    },
    "checkpoint.py": {
        "load_model": {
            "a config is not looked at": remove("checked_details(folder / CONFIG, config)"),
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
            "a segmenter's names taken for a gater's": replace(
                "name.startswith('gater.')", "name.startswith('backbone.')"
            ),
        },
        "read_source": {
            "config of initial weights not looked at": remove("checked_details(source / CONFIG, config)"),
        },
        "not_finite": {
            "statistics of minus infinity pass": replace(
                "~buffer.isfinite() if statistic else buffer.isnan() | buffer.isposinf()",
                "buffer.isnan() | buffer.isposinf()",
            ),
        },
        "read_tensors": {
            "checksum not verified": replace("sha256 is not None and found != sha256", "False"),
        },
    },
    "cluster.py": {
        "train_on_cluster": {
            "finished runs sent to the cluster": replace(
                "{folder: recipe for folder, recipe in recipes.items() if not (folder / 'metrics.json').exists()}",
                "{folder: recipe for folder, recipe in recipes.items()}",
            ),
        },
        "_connect": {
            "Ray asked where nobody listens": remove("_refuse_unreachable(address)"),
        },
        "_Runs.__init__": {
            "no GPU for a run": replace("1 if gpus else 0", "0"),
        },
        "_Runs._stop": {
            "tasks left running": replace("self.ray.cancel(task)", "pass"),
        },
        "_Runs._take": {
            "a lost run ends the comparison": replace("errors.RayError", "KeyError"),
            "runs of different precisions compared": remove("refuse_mixed_precision(self.trained_by)"),
            "a folder of another machine taken for this one's": replace(
                "not (folder / 'metrics.json').exists()", "False"
            ),
        },
        "_Runs._tell_epochs": {
            "epochs told again": remove("self.seen[folder] = max(self.seen[folder], len(rows))"),
        },
        "train_run": {
            "a failed run refused": replace("{'failed': str(error)}", "{'refused': str(error)}"),
            "a full disk met run by run": replace("{'unsaved': f'{host}: {error}'}", "{'failed': str(error)}"),
            "a machine without the folder trains into its own disk": replace(
                "if missing:\n    ...", "if False:\n    ..."
            ),
        },
    },
    "compact_run.py": {
        "compact_run": {
            "half a compacted run stays": replace(
                "with new_folder(out) as beside:\n    ...", "out.mkdir(); beside = out\nif True:\n    ..."
            ),
        },
    },
    "compare.py": {
        "compare": {
            "held: comparisons do not ask": replace("with processes.holding(out):\n    ...", "if True:\n    ..."),
        },
        "_compare": {
            "newer results written over": remove("refuse_newer(out / 'results.json', SCHEMA, 'schema')"),
            "seed not passed on": replace("recipe.of_comparison(name, seed)", "recipe.of_comparison(name, 0)"),
        },
        "_train_in_turn": {
            "comparison goes on though the disk is full": replace("_checks.UnsavedError", "()"),
            "runs trained again": replace(
                "train(run, folders[seed], resume=True, dataset=dataset, workers=workers, progress=progress)",
                "__import__('shutil').rmtree(folders[seed], ignore_errors=True); train(run, folders[seed], resume=True, dataset=dataset, workers=workers, progress=progress)",
            ),
            "one failure ends a comparison": replace("failed.setdefault(name, f'seed {seed}: {error}')", "raise"),
        },
        "_checked_dataset": {
            "newer run in a comparison found late": remove("refuse_newer_run(file.parent)"),
            "weights for a gater where there is none": flip("getattr(run, field) == unused"),
            "other recipes not looked for": remove(
                "there.refuse_other(recipe.of_comparison(there.gate, there.seed), file.parent)"
            ),
        },
        "_folder": {
            "gates share a folder": replace(
                "re.sub('[^a-zA-Z0-9_.=-]+', '-', format_gates(choice).replace(':', '--'))",
                "format_gates(choice).partition(':')[0]",
            ),
        },
        "_results": {
            "precisions are mixed": replace("refuse_mixed_precision", "dict"),
            "work of the dense network compared": replace("_work(metrics[name])", "{}"),
            "a comparison is judged by accuracy": replace(
                "metrics[baseline][0].get('score', 'accuracy')", "'pixel_accuracy'"
            ),
            "first gate is the baseline": replace("'none' if 'none' in runs else next(iter(runs))", "next(iter(runs))"),
            "p not corrected": replace(
                "statistics.holm([d.p for d in differences.values()])", "[d.p for d in differences.values()]"
            ),
            "images paired with themselves": replace("images[baseline]", "images[name]", nth=1),
            "curves in the order of seeds lost": replace("f'validation_{score}'", "'train_accuracy'"),
        },
    },
    "details.py": {
        "": {
            "a deviation may be zero": replace("_numbers(1e-06)", "_numbers(-1000000.0)"),
        },
        "checked_metrics": {
            "metrics are not looked at": replace("check(name, metrics[name])", "pass"),
        },
        "_refuse_contradictions": {
            "classes need not be as many as outputs": replace(
                "(('mean', 'in_chans'), ('std', 'in_chans'), ('classes', 'num_classes'))",
                "(('mean', 'in_chans'), ('std', 'in_chans'))",
            ),
        },
    },
    "export.py": {
        "_beside": {
            "a failed export takes the old file along": drop_call("with_name"),
        },
        "_refuse_unlike": {
            "other gates pass": replace(
                "found['difference'] > _TOLERANCE or found['flipped'] > _FLIPPED * found['images']",
                "found['difference'] > _TOLERANCE",
            ),
            "other logits pass": replace(
                "found['difference'] > _TOLERANCE or found['flipped'] > _FLIPPED * found['images']",
                "found['flipped'] > _FLIPPED * found['images']",
            ),
        },
        "_quantised": {
            "int8 scored in float32": replace("_score(small, run)", "_score(plain, run)"),
            "ranges from the validation images": drop_call("run.of('train')"),
        },
        "exported_program": {
            "the batch of an exported file is fixed": replace(
                "{0: torch.export.Dim('batch', min=1, max=2 ** 16)}", "{}"
            ),
            "the size of images to segment is fixed": replace("free_size", "False"),
        },
    },
    "exported.py": {
        "_opened_torch": {
            "an archive is opened as it is": drop_call("checked_archive"),
        },
    },
    "files.py": {
        "": {
            "held: workers hold on": replace("_unlock(*_locks)", "None"),
        },
        "write_atomically": {
            "file renamed before it is written": replace(
                "file.write(content)", "beside.replace(path); file.write(content)"
            ),
            "half a file under its final name for a moment": replace(
                "beside.replace(path)",
                "path.write_bytes(content[:len(content) // 2]); os.fsync(os.open(path, os.O_RDWR)); beside.replace(path)",
            ),
            "links are replaced": remove("path = path.resolve() if path.is_symlink() else path"),
            "renames are not flushed": remove("flush_folder(path.parent)"),
            "non-atomic write": replace("beside.open", "path.open"),
            "no flush to disk": remove("os.fsync(file.fileno())"),
            "stray part file": replace("beside.unlink(missing_ok=True)", "pass"),
            "target written before it is safe": replace(
                "with beside.open('wb') as file:\n    ...",
                "path.write_bytes(content)\nwith beside.open('wb') as file:\n    ...",
            ),
        },
        "beside_name": {
            "writers share a name": replace(
                "f'.{path.name}.{secrets.token_hex(4)}.{os.getpid()}.part'",
                "f'.{path.name}.0123abcd.{os.getpid()}.part'",
            ),
        },
        "new_folder": {
            "half a state left on a full disk": replace("shutil.rmtree(beside, ignore_errors=True)", "pass"),
            "a folder has its name before it is filled": replace(
                "yield beside; beside.rename(folder)", "beside.rename(folder); yield folder"
            ),
            "state written in place": drop_call("beside_name"),
        },
        "refuse_unwritable": {
            "folder made while it is asked": replace(
                "there = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()))",
                "folder.mkdir(parents=True, exist_ok=True); there = folder",
            ),
        },
        "held": {
            "held: empty folders stay": replace("parent.rmdir()", "pass"),
            "held: any empty folder goes": replace(
                "[parent for parent in (folder, *folder.parents) if not parent.exists()]",
                "[parent for parent in (folder, *folder.parents)]",
            ),
        },
        "_lock": {
            "held: no lock": replace("fcntl.LOCK_EX", "fcntl.LOCK_SH"),
            "held: waits instead": replace("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_UN"),
            "held: descriptor lost without locks": remove("os.close(lock)"),
            "held: disks without locks refused": replace("if isinstance(error, BlockingIOError):\n    ...", "..."),
        },
        "_unlock": {
            "held: never given back": remove("os.close(lock)"),
        },
        "remove_leftovers": {
            "half a file left by a kill": replace("leftover.unlink(missing_ok=True)", "pass"),
            "what a living process writes is taken away": replace(
                "found is None or _is_alive(int(found[1]))", "found is None"
            ),
        },
        "read_json": {
            "deep JSON is a traceback": replace("(ValueError, RecursionError)", "ValueError"),
        },
        "read_bytes": {
            "a device is read to its end": replace("not stat.S_ISREG(path.stat().st_mode)", "False"),
        },
        "read_record": {
            "seal not compared": replace(
                "SEAL in values and values[SEAL] != (found := seal(values))", "(found := seal(values)) and False"
            ),
        },
    },
    "functional.py": {
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
    "hub.py": {
        "PretrainedNet.of_run": {
            "the size of a shared segmenter's images is lost": replace(
                "net.config['scale'] = net._results.recipe.image_size", "pass"
            ),
        },
        "PretrainedNet.save_pretrained": {
            "a card is overwritten": replace("file != _CARD or not (folder / file).exists()", "True"),
        },
        "PretrainedNet._write": {
            "a shared network is not built again before it is written": replace("load_model(beside)", "pass"),
        },
    },
    "insertion.py": {
        "Insertion.check": {
            "check runs in the mode that the network is in": replace(
                "with evaluation_mode(self.model), torch.no_grad():\n    ...", "with torch.no_grad():\n    ..."
            ),
            "check leaves buffers as its forward left them": replace("buffer.copy_(buffers[name])", "buffers[name]"),
            "check leaves its hooks": remove("for handle in handles:\n    ..."),
        },
        "Insertion.undo": {
            "undo forgets the hooks": remove("for handle in self._handles:\n    ..."),
            "undo leaves the gates in the network": drop_call("delattr"),
        },
        "insert_gates": {
            "only the first insertion forgives plain checkpoints": replace(
                "insertion._handles.append(model.register_load_state_dict_post_hook(forgive))",
                "if not model._load_state_dict_post_hooks:\n    insertion._handles.append(model.register_load_state_dict_post_hook(forgive))",
            ),
            "an insertion that fails is not undone": remove("insertion.undo()"),
            "matching nothing is silent": replace("not places", "not places and False"),
            "place and before may be given together": replace(
                "(choice.place if choice else place, before, after)", "(before, after)"
            ),
        },
        "_resolve": {
            "a place in the string loses against the argument": replace(
                "place and choice.place and (place != choice.place)", "False and choice.place"
            ),
        },
        "_attach": {
            "the hook keeps the gate instead of its name": replace(
                "_CallGate(unique, place.channel_axis)", "lambda _, x, kept=gate: kept(x)"
            ),
            "an output gate ignores the channel axis": replace("place.channel_axis", "1"),
            "gates ignore the mode of their layer": remove("gate.train(layer.training)"),
            "gates ignore the type of their layer": remove("dtype=anchor.dtype"),
            "gates of any rank are two-dimensional": replace(
                "{} if place.spatial_dims == 2 else {'spatial_dims': place.spatial_dims}", "{}"
            ),
            "a gate overwrites what has its name": replace("hasattr(layer, unique)", "False"),
        },
        "_ForgivePlainCheckpoint.__call__": {
            "missing gates are forgiven one by one": replace("gate_keys <= set(missing)", "gate_keys & set(missing)"),
            "every missing key is forgiven": replace(
                "missing[:] = [key for key in missing if key not in gate_keys]", "missing.clear()"
            ),
            "plain checkpoints are not forgiven inside another module": replace(
                "{key.removesuffix(own[0]) for key in missing if key.endswith(own[0])}",
                "{'' for key in missing if key == own[0]}",
            ),
            "gates of a part count as given when the whole is loaded": replace(
                "[f'{path}.{key}' for path in self.paths if path in gates for key in gates[path].state_dict()]",
                "[f'{path}.{key}' for path in gates for key in gates[path].state_dict()]",
            ),
            "all insertions forgive together": replace(
                "[f'{path}.{key}' for path in self.paths if path in gates for key in gates[path].state_dict()]",
                "[f'{path}.{key}' for path in gates for key in gates[path].state_dict()]",
            ),
        },
    },
    "measure.py": {
        "macs_per_sample": {
            "flops as multiply-adds": replace("2 * len(example)", "len(example)"),
            "multiply-adds of the batch": replace("2 * len(example)", "2"),
            "counting in train mode": replace(
                "with evaluation_mode(model), torch.no_grad(), counter:\n    ...",
                "with torch.no_grad(), counter:\n    ...",
            ),
        },
        "interleaved_latency": {
            "latency not interleaved": replace(
                "for _ in range(rounds):\n    for name, timer in timers.items():\n        seconds[name].append(timer.timeit(calls[name]).mean)",
                "for name, timer in timers.items():\n    for _ in range(rounds):\n        seconds[name].append(timer.timeit(calls[name]).mean)",
            ),
        },
        "environment": {
            "threads no part of the machine": replace(
                "f'{_cpu_name()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores'",
                "f'{_cpu_name()}, some threads of {os.cpu_count()} cores'",
            ),
        },
    },
    "predict.py": {
        "Predictor.logits": {
            "predictions without normalisation": replace("(pixels - mean) / std", "pixels / 255"),
        },
        "predict": {
            "top_k is always five": replace("min(top_k, len(logits))", "min(5, len(logits))"),
            "masks overwrite each other": remove("_refuse_overwriting(files, Path(out))"),
        },
        "_refuse_overwriting": {
            "masks among the images": replace("out.resolve() in {file.parent.resolve() for file in files}", "False"),
        },
        "_write_masks": {
            "masks of the scaled size": replace("(picture.height, picture.width)", "(16, 16)"),
        },
    },
    "pruning.py": {
        "GatePruner.prune_out_channels": {
            "a pruner keeps the channels that go": flip("channel not in gone"),
            "a pruned gate expects its old width": remove("layer._channels = len(kept)"),
        },
    },
    "registry.py": {
        "bottleneck_width": {
            "a bottleneck of no channels": replace(
                "max(1, int(channels * rd_ratio) // rd_divisor)", "int(channels * rd_ratio) // rd_divisor"
            ),
        },
    },
    "spec.py": {
        "": {
            "the colon of a hub name begins options": replace(
                "'((?:(?:hf-hub|hf_hub|timm):)?[^:]*)(?::(.*))?'", "'((?:(?:hf_hub|timm):)?[^:]*)(?::(.*))?'"
            ),
        },
        "parse_value": {
            "fractions are read as text": remove("if (fraction := _FRACTION.fullmatch(text)):\n    ..."),
        },
        "_format_value": {
            "true is written as True": replace("value is None or isinstance(value, bool)", "value is None"),
        },
        "_format": {
            "large numbers are written with a plus": drop_call("replace"),
        },
        "GateChoice.__post_init__": {
            "an expression torn by the grammar": replace("set('+,@')", "set()"),
            "options are refused only when the gate is made": drop_call("make"),
        },
        "GateChoice.__str__": {
            "the place is not written": replace(
                "_format(self.name, self.options) + (f'@{self.place}' if self.place else '')",
                "_format(self.name, self.options)",
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
                "GateChoice(g['gate'], _tuples(f\"options of {g['gate']!r}\", g.get('options') or {}), g.get('place'))",
                "GateChoice(g['gate'], _tuples(f\"options of {g['gate']!r}\", g.get('options') or {}))",
            ),
            "unknown keys of a gate are ignored": replace(
                "_check_keys('a gate of a model spec', gate, 'gate', ['options', 'place'])", "pass"
            ),
            "a spec without a model is a KeyError": remove(
                "_check_keys('a model spec', values, 'model', ['model_options', 'gates'])"
            ),
        },
    },
    "transfer.py": {
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
    "tuning.py": {
        "_exempt": {
            "beta decays": replace("gate.no_weight_decay", "()"),
            "whatever is called beta does not decay": replace("name in names", "name in names or 'beta' in name"),
            "what the network declares is ignored": replace("declared() if callable(declared) else ()", "()"),
            "a part's no_weight_decay forgotten": replace("model.modules()", "[model]"),
        },
        "undecayed_names": {
            "everything declared to be without decay": replace(
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
        "_keep_evaluating": {
            "frozen norms follow model.train()": remove("layer.training = False"),
            "gates inside frozen norms are frozen with them": replace(
                "nn.Module.train(layer, mode)", "nn.Module.train(layer, mode=False)"
            ),
        },
        "train_only_gates": {
            "gates' own norms are frozen": replace(
                "isinstance(getattr(layer, 'running_mean', None), Tensor) and id(layer) not in inside",
                "isinstance(getattr(layer, 'running_mean', None), Tensor)",
            ),
            "freezing leaves the backbone trainable": replace("id(parameter) in own", "True"),
        },
        "train_everything": {
            "norms stay frozen when everything is trained": replace(
                "layer.__dict__.pop('train', None)", "layer.__dict__.get('train')"
            ),
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
