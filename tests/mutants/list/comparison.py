"""Mutants of gatewise.comparison."""

from mutants import flip, remove, replace

CHANGES = {
    "comparison/run.py": {
        "compare": {
            "held: comparisons do not lock": replace(
                "with processes.holding_folder(out):\n    ...", "if True:\n    ..."
            ),
        },
        "_compare": {
            "newer results overwritten": remove("check_format_not_newer(out / RESULTS, SCHEMA, 'schema')"),
            "seed not passed on": replace("recipe.of_comparison(name, seed)", "recipe.of_comparison(name, 0)"),
        },
        "_train_in_turn": {
            "comparison continues on a full disk": replace("errors.UnsavedError", "()"),
            "runs trained again": replace(
                "train(run, folders[seed], resume=True, **options)",
                "__import__('shutil').rmtree(folders[seed], ignore_errors=True); train(run, folders[seed], resume=True, **options)",
            ),
            "one failure ends a comparison": replace("failed.setdefault(name, f'seed {seed}: {error}')", "raise"),
        },
        "_checked_dataset": {
            "newer run in a comparison found late": remove("check_run_format(file.parent)"),
            "weights for a gater used without gater": flip("getattr(run, field) == unused"),
            "other recipes not checked": remove(
                "existing.check_same_recipe(base.of_comparison(existing.gate, existing.seed), file.parent)"
            ),
        },
        "_check_plain": {"a plain baseline with gates": replace("if found:\n    ...", "if False:\n    ...")},
        "_folder": {
            "gates share a folder": replace(
                "re.sub('[^a-zA-Z0-9_.=-]+', '-', name.replace(':', '--'))",
                "name.partition(':')[0]",
            ),
        },
        "_results": {
            "precisions are mixed": replace("check_one_precision", "dict"),
            "work of the dense network compared": replace("_work(metrics[name])", "{}"),
            "a comparison is judged by accuracy": replace("score = task.score.name", "score = 'pixel_accuracy'"),
            "first gate is the baseline": replace("'none' if 'none' in runs else next(iter(runs))", "next(iter(runs))"),
            "p not corrected": replace(
                "statistics.holm([d.p for d in of_gates.values()])", "[d.p for d in of_gates.values()]"
            ),
            "images paired with themselves": replace("images[baseline]", "images[name]", nth=1),
            "curves in the order of seeds lost": replace("f'validation_{score}'", "'train_accuracy'"),
        },
    },
    "comparison/rivals.py": {
        "choose_rivals": {
            "rivals chosen again": replace("(name, cost) not in known", "True"),
            "rivals not kept": remove("write_record(out / RIVALS, dataclasses.asdict(record), _FORMAT)"),
        },
        "_read": {"rivals of another network taken": replace("there != now", "False")},
        "_check_from_scratch": {"a rival against trained weights": replace("if start:\n    ...", "if False:\n    ...")},
        "_Costing._same_cost": {"each rival is another network": replace("distance <= _SAME", "distance < 0")},
        "_Costing._of_new_width": {"a rival of any cost": replace("abs(best[1] / target - 1) > _FARTHEST", "False")},
        "_macs": {"a rival of the network with all filters": replace("float(net.budget)", "1.0")},
        "RivalRows.of_finished": {"a failed rival is judged": replace("row in finished", "True")},
        "RivalRows.judge": {
            "rivals judged without correction": replace(
                "statistics.holm([difference.p for difference in differences])",
                "[difference.p for difference in differences]",
            ),
            "gates judged against themselves": replace("scores[row]", "scores[name]"),
        },
        "missing_rivals": {"a GaterNet without rival is not mentioned": replace("'open_fraction' in v", "False")},
    },
}
