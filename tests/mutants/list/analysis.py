"""Mutants of gatewise.analysis."""

from mutants import drop_call, off_by_one, remove, replace, replace_text

CHANGES = {
    "analysis/attention.py": {
        "even_positions": {
            "a query gets the map of another": replace(
                "((torch.arange(count) + 0.5) * positions / count).long()", "torch.arange(count)"
            ),
        },
        "mean_distance": {
            "distances count a position with itself": replace(
                "rows.sum(1).square().sum(1) - rows.square().sum((1, 2))", "rows.sum(1).square().sum(1)"
            ),
        },
        "query_distances.record": {
            "outputs with their inputs in them": replace("_rows(y - x, positions)", "_rows(y, positions)"),
        },
    },
    "analysis/attention_figures.py": {
        "attention_overlays": {
            "weights not in multiples of uniform": replace(
                "(maps[:, :1] if same else maps).float() * maps[0, 0].numel()",
                "(maps[:, :1] if same else maps).float()",
            ),
            "each map has colours of its own": remove("norm=colours"),
            "crosses at corners of cells": replace(
                "((x + 0.5) * sides[1] / width - 0.5, (y + 0.5) * sides[0] / height - 0.5)",
                "(x * sides[1] / width, y * sides[0] / height)",
            ),
            "attention of the first picture everywhere": replace("smooth[row, column - 1]", "smooth[0, column - 1]"),
        },
        "_scale": {
            "nearly uniform maps stretched": replace(
                "(min(0.95, float(weights.min())), max(1.05, float(weights.max())))",
                "(float(weights.min()), float(weights.max()))",
            ),
        },
    },
    "analysis/axes.py": {
        "name_along": {
            "names are written on top of each other": replace(
                "-(-len(names) // int((axes.figure.get_figwidth() - _BESIDE) / LINE))", "1"
            ),
        },
        "show_score": {
            "rounding fills the axis": replace("_POINTS - (top - bottom)", "0.0"),
        },
        "name_gates_along": {
            "a gate of the whole network has no name": replace("all('.' in path for path in paths)", "True"),
        },
    },
    "analysis/drawing.py": {
        "Drawing.inline_svg": {
            "colours use the figure's name": replace(
                "'(\\\\bid=\"|href=\"#|url\\\\(#)'", "'(\\\\bid=\"|\"#|url\\\\(#)'"
            ),
            "ids of a page's figures are shared": replace("f'\\\\g<1>{self.name}-'", "'\\\\g<1>figure-'"),
            "tips are not escaped": drop_call("escape(tip)"),
        },
        "_add_room": {
            "names take the room of the axes": replace("max(0.0, max(names, default=0.0) - _ONE_LINE)", "0.0"),
        },
        "add_legend": {
            "long names leave the figure": replace("_wrapped(label, int((room - _HANDLE) / _LETTER))", "label"),
        },
        "escape_mathtext": {
            "names are parsed as mathematics": drop_call("replace"),
            "names with an underscore leave the legend": replace("' ' if name.startswith('_') else ''", "''"),
        },
    },
    "analysis/explanation.py": {
        "check_outputs": {
            "figures are rejected at the end": remove("check_folder_writable(Path(figures_in))"),
        },
        "explain_opened": {
            "runs are not shown side by side": replace(
                "[*overview(opened), *beside_each_other(found)]", "[*overview(opened)]"
            ),
        },
        "_written": {
            "figures are not kept": replace(
                "(drawing for section in page.sections for drawing in section.drawings)", "()"
            ),
        },
    },
    "analysis/figures.py": {
        "late_curves": {
            "few epochs have a figure of their second half": replace("epochs < _FEW", "False"),
            "the second half is drawn also where it shows no more": replace(
                "2 * _extent(late) >= _extent(values)", "False"
            ),
        },
        "_draw_curves": {
            "the largest error is the best": replace("max if score.higher_is_better else min", "max"),
            "a line hides the one below": replace("dashes if mean in drawn else '-'", "'-'"),
        },
        "accuracy_against_latency": {
            "legend omitted": remove("add_legend(figure)"),
        },
    },
    "analysis/findings.py": {
        "": {
            "every command waits for torchmetrics": replace(
                "from gatewise.analysis.gate_summary import GateSummary",
                "import gatewise.analysis.gate_stats; from gatewise.analysis.gate_summary import GateSummary",
            ),
        },
    },
    "analysis/gate_figures.py": {
        "_occupied": {
            "the start of alpha off the axis": replace(
                "torch.tensor([*(layer.mean for layer in layers), line])",
                "torch.tensor([layer.mean for layer in layers])",
            ),
            "means off the axis": replace(
                "torch.cat([edges[filled], edges[filled + 1], bars.clamp(edges[0], edges[-1]), means])",
                "torch.cat([edges[filled], edges[filled + 1]])",
            ),
        },
        "classes_by_channel": {
            "channels that do not distinguish classes": remove("descending=True"),
        },
        "_farthest": {
            "classes by depth: first classes instead of farthest": remove("descending=True"),
            "classes without images are average": replace("[row for row in order if size[row] >= 0]", "order"),
        },
    },
    "analysis/given_network.py": {
        "GivenNetwork._task": {
            "labels out of range are counted": replace(
                "counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) <= most", "False"
            ),
            "labels of no classes are classes": replace("len(labels) < len(self._labels)", "False"),
        },
        "GivenNetwork.examples": {
            "examples of one class": remove("if self.image_classes: ..."),
        },
        "_as_classes": {
            "pixels that do not count are class 0": replace("IGNORED", "0"),
        },
    },
    "analysis/gate_stats.py": {
        "GateStats.__init__": {
            "gate statistics: a process counts its own images": replace("dist_reduce_fx='sum'", "dist_reduce_fx=None"),
        },
        "GateStats.update": {
            "channels of zeros count in their class": replace("known.double()", "torch.ones_like(values)"),
        },
        "GateStats._check_labels": {
            "labels beyond the classes": replace("len(labels)", "False"),
        },
        "GateStats.summaries": {
            "summaries of one process": replace(
                "self.sync_context(should_sync=self.sync_on_compute)",
                "self.sync_context(should_sync=False)",
            ),
        },
        "GateStats._summary": {
            "gate statistics: variance around nothing": replace(
                "self.squares[own] / count - mean.square()", "self.squares[own] / count"
            ),
            "deviation of the channels' means": replace("(within + across) / count.sum()", "across / count.sum()"),
        },
        "GateStats._between_classes": {
            "several classes of an image explain its gates": replace("self.overlaps", "False"),
            "chance counts as dependence on the class": replace("between - by_chance", "between"),
            "gate statistics: classes weigh the same": replace(
                "counts * (self.by_class[:, own] / counts - mean).square()",
                "counts.mean() * (self.by_class[:, own] / counts - mean).square()",
            ),
        },
        "_histogram": {
            "gate statistics: values beyond the bins are lost": replace(
                "((values - low) * (BINS / (high - low))).floor().clamp(0, BINS - 1)",
                "((values - low) * (BINS / (high - low))).floor().remainder(BINS)",
            ),
        },
        "_spread": {
            "spread over images": replace("sizes.std(1, correction=0)", "sizes.std(0, correction=0).mean()"),
        },
    },
    "analysis/gater_figures.py": {
        "open_gates_by_image": {
            "bars of uneven width": replace("_whole_bins(lowest, highest, 60)", "60"),
        },
    },
    "analysis/interventions.py": {
        "idle_gates": {
            "idle gates are the others": replace("summary.near_identity >= share", "summary.near_identity <= share"),
        },
        "removal_cost": {
            "nothing is removed": replace("gates_bypassed(chosen)", "gates_bypassed({})"),
        },
        "exchange_gates": {
            "a class keeps its own gates": replace("column", "min(column, 1)"),
        },
    },
    "analysis/page.html": {
        "": {
            "arrow keys show hidden classes": replace_text(
                "      if (!isAway(index)) return show(index);", "      return show(index);"
            ),
            "arrow keys do not go from mark to mark": replace_text("      next.focus();\n", ""),
            "thumbnails of hidden classes": replace_text(
                "if (distance < least && !isAway(point))", "if (distance < least)"
            ),
            "a figure is wider than a telephone": replace_text("calc(.75 * var(--width))", "var(--width)"),
            "sorted as text": replace_text(
                "rows.sort(rows.every(row => !Number.isNaN(Number(key(row)))) ? numeric : compare);",
                "rows.sort(compare);",
            ),
            "second click does not reverse": replace_text(
                "body.append(...(descending ? rows.reverse() : rows));", "body.append(...rows);"
            ),
            "font from the network": replace_text(
                "<style>", '<link rel="stylesheet" href="https://fonts.example.org/a.css">\n<style>'
            ),
        },
    },
    "analysis/page.py": {
        "check_page_writable": {
            "a page replaces any file": replace("out.suffix.lower() not in _SUFFIXES", "False"),
        },
        "Page.render": {
            "a page treats names as code": replace("autoescape=True", "autoescape=False"),
            "page not escaped": replace("autoescape=True", "autoescape=False"),
        },
    },
    "analysis/patterns.py": {
        "GatePatterns.update": {
            "kept images are numbered within their batch": replace(
                "self.images + torch.arange(len(labels))", "torch.arange(len(labels))"
            ),
            "first images kept instead of a sample": replace(
                "torch.cat([self._keys, keys]).sort()",
                "(torch.cat([self._keys, keys]), torch.arange(len(self._keys) + len(keys)))",
            ),
        },
        "GatePatterns.rate_by_class": {
            "rate over all images": replace("self.images_by_class.clamp(min=1).unsqueeze(1)", "max(1, self.images)"),
        },
        "GatePatterns.open_shares": {
            "open shares in images": replace(
                "self.images_by_gate.double() / max(1, self.images)", "self.images_by_gate.double()"
            ),
        },
        "record_patterns": {
            "patterns of nothing": replace("not patterns.images", "False"),
        },
    },
    "analysis/recording.py": {
        "Recorded.of": {
            "a factor is a ratio of sizes": replace(
                "(x * y).mean(axes) / power", "(y.square().mean(axes) / power).sqrt()"
            ),
            "additions are not in units of the map": replace("added.mean(axes) / size", "added.mean(axes)"),
            "a channel of zeros counts as closed": replace(
                "(x * y).mean(axes) / power + nothing", "((x * y).mean(axes) / power).nan_to_num()"
            ),
            "a change that cancels is not counted": replace("added.square().mean(axes).sqrt", "added.mean(axes).abs"),
        },
        "hooks_on": {
            "the recorder leaves its hooks": replace(
                "stack.callback(gate.register_forward_hook(make(path)).remove)",
                "gate.register_forward_hook(make(path))",
            ),
        },
        "GateRecorder._recording": {
            "the recorder keeps earlier forwards": replace("self._calls.clear()", "None"),
            "the recorder records in training mode": replace(
                "nullcontext() if self.keep_mode else evaluation_mode(self.model)", "nullcontext()"
            ),
        },
        "_mean": {
            "only the last call of a gate counts": replace(
                "if len(calls) == 1:\n    return calls[0]", "return calls[-1]"
            ),
        },
    },
    "analysis/run_figures.py": {
        "": {
            "another run's number": off_by_one("summary.competition - 1"),
        },
        "open_gates_of_runs": {
            "colours by the place in the figure": replace("runs.index(run)", "index"),
        },
    },
    "training/runs.py": {
        "Run.images": {
            "always the validation images": replace("self.split", "'validation'"),
        },
        "open_runs": {
            "images are loaded for each run": drop_call("cache"),
        },
        "Run.checked": {
            "files of a run are read after long work": replace(
                "(self.model, self.task, self.recipe, self.metrics, self.log, self.dataset)", "self.recipe"
            ),
        },
        "Run.log": {
            "the log of another score is drawn": replace("isinstance(row.get(wanted), int | float)", "True"),
        },
        "Run.network": {
            "nonfinite weights are drawn": remove(
                "check_weights_finite(self.folder / WEIGHTS, model, 'Train the run again')"
            ),
        },
        "Run._found": {
            "other classes accepted": remove("_check_same_data(dataset, self.config, self.folder)"),
            "requested data may be missing": remove("if self.data is not None:\n    ..."),
        },
        "_check_same_data": {
            "images of another size accepted": replace(
                "isinstance(dataset, Dataset) and list(dataset.size) != list(config['image_size'])", "False"
            ),
        },
        "_names": {
            "runs all have one name": replace("paths = [path[:-1] for path in paths]", "break"),
        },
        "_slugs": {
            "names of figures collide": replace(
                "[slug if count[slug] == 1 else f'{slug}-{number}' for number, slug in enumerate(readable, 1)]",
                "readable",
            ),
        },
    },
    "analysis/score_page.py": {
        "_parts": {
            "training images are scored with test images": replace(
                "division and division.rule and ('test' not in present)", "division and division.rule"
            ),
        },
        "_constant": {
            "the constant answer is scored on other images than the network": replace(
                "constant_answer(run.task, dataset, labels)", "constant_answer(run.task, dataset)"
            ),
            "the constant answer of other data is that of its training part": replace("run.data is not None", "False"),
        },
        "default_page": {
            "an evaluation of other images replaces that of the run": remove(
                "names += path.resolve().parts[-2:] if path.exists() else [run.data]"
            ),
        },
    },
    "analysis/sections.py": {
        "_value_drawings": {
            "images without gate values end the page": replace("most.by_class.isnan().all()", "False"),
        },
        "overview": {
            "runs on other images side by side": replace(
                "len({run.source.of_validation() for run in runs}) == 1", "True"
            ),
        },
        "_of_run": {
            "the reason for missing images is not shown": replace(
                "f'Statistics that need images are omitted. {run.missing}'",
                "'Statistics that need images are omitted.'",
            ),
        },
    },
    "core/statistics.py": {
        "mean_interval": {
            "normal instead of t": replace(
                "_stats().t.ppf(0.5 + LEVEL / 2, len(values) - 1)", "_stats().norm.ppf(0.5 + LEVEL / 2)"
            ),
        },
        "spread": {"rounding treated as spread": replace("ROUNDING * max(map(abs, values))", "0.0")},
        "paired_differences": {
            "small scores have no spread": replace("ROUNDING * max(map(abs, (*values, *baseline)))", "ROUNDING"),
        },
        "paired_difference": {
            "unpaired difference": replace(
                "_stats().ttest_1samp(differences, 0.0)", "_stats().ttest_ind(values, baseline)"
            ),
        },
        "image_bootstrap": {
            "bootstrap of one side": replace("baseline.double().mean(0)", "baseline.double().mean()"),
        },
        "redrawn_bootstrap.difference": {
            "images drawn without replacement": replace(
                "torch.zeros(len(chosen), drawn, dtype=torch.float64).scatter_add_(1, chosen, once)",
                "torch.zeros(len(chosen), drawn, dtype=torch.float64).scatter_add_(1, chosen, once).clamp(max=1)",
            ),
            "a group counts as one image": replace("counts if groups is None else counts[:, of_image]", "counts"),
        },
        "_bootstrap": {
            "undefined draws are kept": replace("found[np.isfinite(found)]", "np.nan_to_num(found)"),
        },
        "holm": {
            "holm without floor": replace(
                "max(floor, min(1.0, p * (len(asked) - rank)))", "min(1.0, p * (len(asked) - rank))"
            ),
            "bonferroni": replace("len(asked) - rank", "len(asked)"),
        },
        "verdict": {
            "verdict without correction's limit": replace(
                "corrected_p is None or corrected_p >= alpha", "corrected_p is None"
            ),
            "higher is always better": replace("(difference.mean > 0) == higher_is_better", "difference.mean > 0"),
        },
    },
    "analysis/timed_forms.py": {
        "PlainForms._prepare": {
            "the network itself is optimised": drop_call("full_copy"),
            "without gates nothing is optimised": replace(
                "self._optimised(without_gates(copied))", "without_gates(copied)"
            ),
        },
    },
    "analysis/thumbnails.py": {
        "Thumbnails.of": {
            "thumbnails column by column": replace(
                "row, column = divmod(number, columns)", "column, row = divmod(number, columns)"
            ),
        },
        "Thumbnails.for_page": {
            "thumbnails upside down": replace("1 - y / height", "y / height"),
        },
    },
    "analysis/robustness.py": {
        "_read": {"corruptions of other weights kept": replace("found['weights'] == run.config['sha256']", "True")},
        "check_corruptible": {"masks distorted": replace("task.class_per_pixel", "False")},
        "_compute": {
            "corruptions of the strengths mixed up": replace(
                "corrupted(image, corruption, strength, number)", "corrupted(image, corruption, 1, number)"
            ),
        },
        "_score": {"corrupted pixels not normalised": replace("(part.float() - mean) / std", "part.float()")},
    },
}
