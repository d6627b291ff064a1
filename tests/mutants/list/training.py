"""Mutants of gatewise.training."""

from mutants import drop_call, off_by_one, remove, replace

CHANGES = {
    "training/checkpoint.py": {
        "_state": {
            "scalars of optimizer lost": replace("scalars[f'{index}.{name}'] = value", "pass"),
        },
        "check_position": {
            "a position after the end is accepted": replace("count not in allowed", "False"),
        },
        "_state_record": {
            "checksum of a checkpoint's JSON not compared": replace(
                "record.values_sha256 != (actual := _checksum(content))", "(actual := _checksum(record)) and False"
            ),
        },
        "load_state": {
            "sha256 of a state not compared": replace(
                "read_tensors(folder / f'{STATE}.safetensors', record.sha256)",
                "read_tensors(folder / f'{STATE}.safetensors')",
            ),
        },
        "_restore_optimizer": {
            "momentum not restored": replace(
                "{'state': slots, 'param_groups': groups}", "{'state': {}, 'param_groups': groups}"
            ),
            "group options not restored": replace("own | group", "own | {}"),
            "tensors in groups lost": replace("groups[int(index)][option] = tensor", "pass"),
            "optimizer state in another order in memory": replace(
                "state[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)", "pass"
            ),
        },
        "complete_states": {
            "half a checkpoint treated as complete": replace("('json', 'safetensors')", "()"),
        },
        "keep_newest_states": {
            "half-removed checkpoints counted": replace("complete_states(folder)", "sorted(folder.glob('step_*'))"),
            "all checkpoints kept": replace("shutil.rmtree(other, ignore_errors=True)", "pass"),
        },
    },
    "training/distributed.py": {
        "Processes.__init__": {
            "as many trainings as processes on a CPU": replace("int(os.environ.get('WORLD_SIZE', '1')) > 1", "False"),
        },
        "Processes.is_main": {
            "every process writes": replace("self.rank == 0", "True"),
        },
        "Processes.share_buffers": {
            "statistics of each process kept apart": replace("distributed.broadcast(buffer, 0)", "pass"),
        },
        "Processes.check_same_everywhere": {
            "different folders treated as one": replace("any((other != values[0] for other in values))", "False"),
        },
        "Processes.check_divides_batch": {
            "unequal parts of a batch": replace("batch_size % self.count", "False"),
        },
        "mean_over_processes": {
            "pixels weighed by their process": replace("of_all_processes(value).mean(0)", "value"),
        },
    },
    "training/evaluation.py": {
        "evaluate": {
            "only the process's own images evaluated": replace(
                "processes is not None and processes.count > 1", "False"
            ),
            "evaluation in train mode": remove("model.eval()"),
        },
    },
    "training/finite_checks.py": {
        "first_layer.watch.check": {
            "layer named for what it was given": replace(
                "not names and all(map(_finite, tensors_of(inputs))) and (not all(map(_finite, tensors_of(output))))",
                "not all(map(_finite, tensors_of(output)))",
            ),
        },
    },
    "training/from_recipe.py": {
        "build": {
            "routes are not those of the gates": replace(
                "initial.unrouted is not None and isinstance(network, GaterNet)", "False"
            ),
        },
        "Setup.before": {
            "gates of the weights are opened": replace("self.initial.has_gates", "False"),
        },
        "train": {
            "held: trainings do not lock": replace("with processes.holding_folder(out):\n    ...", "if True:\n    ..."),
            "unwritable folder found late": remove(
                "processes.on_main_process(functools.partial(check_folder_writable, out))"
            ),
            "bar left running": remove("progress.stop()"),
            "another recipe resumed": remove("stored.check_same_recipe(recipe, out)"),
            "checkpoints of a finished run stay": remove(
                "processes.on_main_process(functools.partial(clear_checkpoints, out, keep=keep))", nth=2
            ),
            "checkpoints that a kill left stay": remove(
                "processes.on_main_process(functools.partial(clear_checkpoints, out, keep=keep))", nth=1
            ),
            "a kept checkpoint is removed by the next command": replace(
                "recipe.keep_checkpoint or (stored is not None and stored.keep_checkpoint)", "recipe.keep_checkpoint"
            ),
            "the new place of moved data is not kept": replace("not states or recipe != stored", "not states"),
        },
        "Setup.announce": {
            "unused weights not reported": replace("self.initial.transfer is not None", "False"),
        },
        "_build": {
            "model weights unseeded": remove("seed=seed"),
            "networks tried on no image": replace(
                "model(torch.zeros(1, dataset.channels, *dataset.size))", "torch.zeros(1, len(dataset.classes))"
            ),
        },
    },
    "training/initial.py": {
        "load_initial": {
            "nonfinite initial weights trained": remove(
                "check_weights_finite(weights or spec, model, 'Start from other weights')"
            ),
            "gates with other options reused": remove("_check_same_gates(spec, weights, config)"),
            "initial weights ignored": replace("_load(model, weights, unrouted)", "({}, None)"),
        },
        "_normalisation": {
            "normalisation of the new data": replace(
                "len(config.get('mean', ())) == len(config.get('std', ())) == dataset.channels", "False"
            ),
        },
    },
    "training/learner.py": {
        "Learner.best_model": {
            "average not kept": replace(
                "self.plain_model if self.average is None else self.average.module", "self.plain_model"
            ),
        },
        "Learner.step": {
            "losses checked only after the step": replace("check_loss_finite(loss, parts, self.model, images)", "pass"),
            "gradients not checked": replace("check_gradients_finite(self.plain_model)", "pass"),
            "the loss of one process logged": replace(
                "(rows[:, 0].mean(), rows[:, 1].mean(), rows[:, 2].sum())", "(loss.detach(), of_gates, hits)"
            ),
            "the gates' loss shown as the task's": replace(
                "functools.reduce(torch.add, parts.values()).float()", "loss.float()"
            ),
            "the same noise in every process": replace(
                "((self.seed << 32) + number) * processes.count + processes.rank",
                "(self.seed << 32) + number",
            ),
            "side outputs without their weight": replace(
                "self.side_weight * self.task.loss(side, targets)", "self.task.loss(side, targets)"
            ),
            "side outputs not trained": replace("enumerate(sides, 1)", "enumerate((), 1)"),
            "extra losses omitted": replace(
                "{'the loss of the output': self.task.loss(logits, targets), \"the gates' loss\": gate_loss(self.model)}",
                "{'the loss of the output': self.task.loss(logits, targets)}",
            ),
            "rate not set": replace("group['lr'] = rate", "pass"),
            "gradients not cleared": remove("self.optimizer.zero_grad()"),
            "dropout not reseeded": remove(
                "seed_generators(((self.seed << 32) + number) * processes.count + processes.rank)"
            ),
            "mixed with the labels of one image": replace(
                "images, targets = self.task.mix(images, labels)", "images, _ = self.task.mix(images, labels)"
            ),
        },
        "_without_autocast": {
            "evaluated in the precision of the training": replace("original is None", "True"),
            "trained in float32 after an evaluation": replace("model.forward = prepared", "pass"),
        },
        "Learner.not_finite": {
            "overflowed optimizer saved": replace("ruined_optimizer(self.plain_model, self.optimizer)", "None"),
        },
        "Learner.restore": {
            "first stage's optimizer restored in the second": replace(
                "None if stage_is_new else self.optimizer", "self.optimizer"
            ),
            "optimizer never restored": replace("None if stage_is_new else self.optimizer", "None"),
        },
        "Learner._modules": {
            "average not saved": replace("{} if self.average is None else {'ema': self.average.module}", "{}"),
        },
        "_accelerator": {
            "precision of the process's first run": remove("accelerate.state.AcceleratorState._reset_state()"),
        },
        "resolve_precision": {
            "bf16 on every processor": replace(
                "'bf16' if capabilities.get('amx_bf16') or capabilities.get('avx512_bf16') else 'fp32'",
                "'bf16' if capabilities.get('amx_bf16') or capabilities.get('avx512_bf16') else 'bf16'",
            ),
        },
    },
    "training/loop.py": {
        "Training.run": {
            "a training restarts": replace(
                "checkpoint = self._find_position()",
                "checkpoint = self._find_position() and None; self.epoch = self.step = 0",
            ),
            "controller not given the schedule": remove(
                "set_total_steps(self.learner.plain_model, (self.epochs - self._gating.epochs.start) * self.steps)"
            ),
            "a schedule for each stage": replace(
                "self._begin(stage, checkpoint)",
                "self._begin(stage, checkpoint); set_total_steps(self.learner.plain_model, len(stage.epochs) * self.steps)",
            ),
        },
        "Training._find_position": {
            "oldest checkpoint restored": replace(
                "complete_states(self.checkpoints)", "complete_states(self.checkpoints)[::-1]"
            ),
            "position within the epoch lost": replace("position['step']", "0"),
            "losses before the interruption lost": replace("position.get(name) or [0.0] * self.step", "[]"),
        },
        "Training._train_epoch": {
            "training stays in eval mode": remove("self.learner.model.train()"),
            "rate not warmed again": replace("self.epoch - stage.epochs.start", "self.epoch"),
        },
        "Training._check_evaluation": {
            "an undefined score is used": replace("not math.isfinite(evaluation.scores[task.score.name])", "False"),
            "nonfinite weights kept": replace("not math.isfinite(loss)", "False"),
        },
        "Training._stop_if_asked": {
            "signal ignored": replace("if signal:\n    ...", "if False:\n    ..."),
        },
        "Training._check_losses_finite": {
            "loss scale of zero not detected": replace("self.learner.accelerator.scaler", "None"),
            "nan not detected": replace("if len(bad):\n    ...", "if False:\n    ..."),
            "wrong step of nan": replace("len(self.losses) - len(recent) + int(bad[0])", "int(bad[0])"),
        },
        "Training._save": {
            "nonfinite statistics saved": replace("next(filter(None, names), None)", "None"),
        },
    },
    "training/optimizer.py": {
        "make_optimizer": {
            "decay on beta": replace(
                "parameter_groups(model, weight_decay)",
                "[{'params': list(model.parameters()), 'weight_decay': weight_decay}]",
            ),
        },
    },
    "training/options.py": {
        "TaskOptions.__post_init__": {
            "fields of another task are ignored": remove("self._check_all_used()"),
        },
        "TaskOptions.task_spec": {
            "own options of a task are lost": replace("{**spec.options, **given}", "given"),
        },
        "Schedule.rate": {
            "learning rate starts at 0": off_by_one("step + 1"),
            "rate does not reach 0": replace("steps - rising", "steps"),
        },
    },
    "training/progress.py": {
        "Progress.say": {
            "progress on standard output": remove("file=sys.stderr"),
        },
    },
    "training/recipe.py": {
        "Recipe.check_same_recipe": {
            "a checkpoint to keep is another recipe": replace("name != 'keep_checkpoint'", "True"),
        },
        "Recipe.of_comparison": {
            "a stage for gates without parameters": replace("any((choice.learns for choice in gates))", "gates"),
            "stages for networks without gates": replace("gate_epochs", "self.gate_epochs"),
        },
        "Recipe.load": {
            "deep YAML is a traceback": replace(
                "(yaml.YAMLError, ValueError, RecursionError)", "(yaml.YAMLError, ValueError)"
            ),
            "invalid dates are a traceback": replace(
                "(yaml.YAMLError, ValueError, RecursionError)", "(yaml.YAMLError, RecursionError)"
            ),
        },
    },
    "training/results.py": {
        "on_test_images": {"undefined test scores are averaged": replace("None in found", "False")},
        "write_results": {
            "best instead of last accuracy": replace(
                "evaluation.results",
                "{**evaluation.results, 'accuracy': max(row['validation_accuracy'] for row in log.rows)}",
            ),
            "speed of the last epoch": replace("statistics.median", "max"),
            "metrics written first": replace(
                "save_model(out, learner.best_model, spec, details)",
                "write_metrics(out, metrics); save_model(out, learner.best_model, spec, details)",
            ),
        },
    },
    "training/run_log.py": {
        "RunLog.__init__": {
            "log keeps rows of epochs trained again": replace(
                "[row for row in read_log(out) if row['epoch'] <= epoch]", "read_log(out)"
            ),
        },
    },
    "training/recipe_paths.py": {
        "absolute_paths": {
            "data of that name in another folder is read": replace("folder == Path.cwd()", "True"),
            "data that is gone is looked for in another folder": replace("found['data'] = data", "pass"),
        },
        "is_same": {
            "other weights take the place of those that are gone": replace("field in _DATA", "True"),
            "no data takes the place of data that is gone": replace("_exists(Path(here))", "True"),
            "two names of one folder are two recipes": replace("os.path.realpath(expanded(text))", "text"),
        },
        "_is_word": {
            "a folder takes the place of a name": replace("is_name(text) or text == SELF", "False"),
        },
        "_exists": {
            "patterns are no paths": replace("set('*?{')", "set()"),
        },
    },
    "training/teacher.py": {
        "load_teacher": {"a teacher of another task": replace("spec.kind.name != task.name", "False")},
    },
    "training/run_folder.py": {
        "holds_run": {
            "weights without metrics are overwritten": replace(
                "(out / RECIPE).exists() and (out / WEIGHTS).exists()", "False"
            ),
        },
        "clear_checkpoints": {
            "no checkpoint is kept on request": replace("1 if keep else 0", "0"),
        },
        "check_may_train": {
            "recipe checked before its format": remove("check_run_format(out)"),
            "files of others are overwritten": remove("_check_folder_is_ours(out)"),
            "results without a recipe reused": replace("not (out / RECIPE).exists()", "False"),
        },
        "finished_metrics": {
            "finished run trained again": replace("read_metrics(out)", "None"),
        },
        "_damaged_and_intact": {
            "damaged checkpoint reported as good": replace("is_whole(state)", "True"),
            "oldest checkpoint named": drop_call("reversed"),
        },
    },
    "training/runs.py": {
        "_of_other_data": {
            "other data must have the columns of the training": replace(
                "(undivided, without, dataclasses.replace(without, label_delimiter=None))", "(undivided,)"
            ),
        },
        "stored_task": {
            "classes need not be as many as outputs": replace(
                "(outputs := config.get('num_classes', task.outputs)) != task.outputs", "False"
            ),
        },
    },
    "training/signals.py": {
        "Interruption._note": {
            "a passed-on signal kills": replace("if not self._launched:\n    ...", "..."),
            "a second signal is ignored": replace("time.monotonic() - self._noted_at > _ECHO_S", "False"),
        },
        "Interruption._restore": {
            "handlers kept": replace("signal.signal(number, handler)", "pass"),
        },
    },
    "training/tasks/base.py": {
        "decimal": {"small numbers lose their digits": replace("0 < abs(value) < 0.01", "False")},
        "BatchResults.merge": {
            "sums of a metric of one process": replace(
                "torch.stack([part[0][index][name] for part in parts]).sum(0)", "parts[0][0][index][name]"
            ),
        },
    },
    "training/tasks/registry.py": {
        "task_class": {
            "any task is accepted": replace(
                "_registry.lookup(name)",
                "_registry.get(name, _registry['classify'])",
            ),
        },
        "register_task": {
            "a second task of a name": remove("_registry.check_new(name)"),
        },
        "register_task.register": {
            "a score with two meanings": replace("(known := _scores().get(score.name, score)) != score", "False"),
        },
        "TaskSpec.parse": {
            "a misspelled option of a task is ignored": remove(
                "_validation.check_known_options(f'task {name!r}', options, kind.parameters())"
            ),
        },
        "main_score": {
            "the validation loss as the main score": replace("name != 'loss'", "name"),
        },
    },
    "training/tasks/classify.py": {
        "Classification.prepare": {
            "smoothed twice": replace("label_smoothing=0.0", "label_smoothing=self.label_smoothing"),
        },
        "Classification.prediction": {
            "top_k is always five": replace("min(top_k, len(logits))", "min(5, len(logits))"),
        },
        "Classification.loss": {
            "label smoothing ignored": replace(
                "nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)",
                "nn.functional.cross_entropy(logits, targets)",
            ),
            "class weights are divided by their sum": replace("total / len(logits)", "total / weights[targets].sum()"),
        },
        "_ClassificationResults.update": {
            "validation loss of the logits": replace("logits.float()", "logits.float().softmax(1)", nth=1),
        },
    },
    "training/tasks/multilabel.py": {
        "MultiLabel.prepare": {
            "positives are weighted by their share": replace("(1 - positive) / positive", "positive"),
        },
        "_mixed": {
            "labels are not mixed": replace("shares @ labels", "labels"),
        },
        "average_precision": {
            "equal logits have an order": replace("part.cumsum(1)[:, last]", "part.cumsum(1)"),
        },
        "area_under_curve": {
            "equal logits count as above": replace("(above + passed) / 2", "above"),
        },
        "label_score": {
            "classes without positives count as 0": replace(
                "torch.where(total > 0, 2 * found / (total + claimed), torch.nan)", "2 * found / (total + claimed)"
            ),
        },
    },
    "training/tasks/regress.py": {
        "Regression.loss": {
            "numbers are learned in their unit": replace("standardised", "targets"),
        },
        "Regression.translated": {
            "a teacher's numbers are in another unit": replace(
                "logits * scale.to(logits.device) + shift.to(logits.device)", "logits"
            ),
        },
        "Regression.restore": {
            "the unit is forgotten": remove(
                "self.mean, self.std = (torch.tensor(targets[name]) for name in ('mean', 'std'))"
            ),
        },
        "": {
            "a higher error is better": replace(
                "Score('mae', 'mean absolute error', is_fraction=False, higher_is_better=False, lowest=0.0)",
                "Score('mae', 'mean absolute error', is_fraction=False, lowest=0.0)",
            ),
        },
    },
    "training/constant_answer.py": {
        "constant_answer": {
            "the constant answer is scored on training images": replace("dataset.validation", "dataset.train"),
        },
    },
    "training/tasks/segment.py": {
        "Segmentation.loss": {
            "class weights never used": replace(
                "None if self.weights is None else self.weights.to(logits.device)", "None"
            ),
        },
        "overlap_score": {
            "the bootstrap of the foreground takes all classes": replace(
                "by_class[..., 1] if binary else by_class.nanmean(-1)", "by_class.nanmean(-1)"
            ),
        },
        "Segmentation.default_score": {
            "a binary segmenter scored by the mean": replace("_IOU if self.outputs == 1 else _MEAN_IOU", "_MEAN_IOU"),
        },
        "_SegmentationResults.results": {
            "the mean over all classes, absent ones too": replace("iou.nanmean", "iou.nan_to_num().mean"),
            "the background's IoU": replace("float(iou[1])", "float(iou[0])"),
        },
        "overlaps": {
            "the union omits missed pixels": replace(
                "confusion.sum(1) + confusion.sum(2) - intersection", "confusion.sum(1)"
            ),
        },
        "pixel_loss": {
            "ignored pixels are counted in the loss": replace(
                "nn.functional.cross_entropy(logits.float(), targets, weights, ignore_index=IGNORED, reduction='sum', label_smoothing=label_smoothing)",
                "nn.functional.cross_entropy(logits.float(), targets.clamp(max=logits.shape[1] - 1), weights, reduction='sum', label_smoothing=label_smoothing)",
            ),
            "one map as if it were two": replace("torch.zeros_like(logits)", "-logits"),
        },
        "Segmentation.prediction": {
            "masks of the scaled size": replace("(picture.height, picture.width)", "(16, 16)"),
        },
        "Segmentation.hits": {
            "hits count ignored pixels": replace("counted.flatten(1).sum(1).clamp(min=1)", "counted[0].numel()"),
        },
        "_median_frequency": {
            "weights by frequency and not against it": replace(
                "frequencies[occurs].median() / frequencies.clamp(min=1e-12)",
                "frequencies / frequencies[occurs].median()",
            ),
        },
    },
    "training/tensorboard.py": {
        "Board._open": {
            "tensorboard not purged": remove("purge_step=self._epoch"),
        },
        "Board.add": {
            "curves stop a training": replace("OSError", "ZeroDivisionError"),
        },
    },
    "training/trackers.py": {
        "Trackers.__init__": {"trackers do not get the recipe": remove("tracker.store_init_configuration(plain)")},
        "Trackers.add": {"trackers get epochs as steps": replace("row['step']", "row['epoch']")},
        "Trackers.close": {"runs of trackers stay open": remove("tracker.finish()")},
        "Trackers._surviving": {
            "a failing tracker is tried again": remove("self._trackers.pop(name, None)"),
        },
        "parse_trackers": {
            "missing tracker found late": replace(
                "name not in {TENSORBOARD, *map(str, tracking.get_available_trackers())}", "False"
            )
        },
    },
}
