"""Mutants of gatewise.comparison."""

from mutants import flip, remove, replace

CHANGES = {
    "core/power.py": {
        "_critical_values": {"one-sided power": replace("1 - alpha / 2", "1 - alpha")},
        "may_stop": {
            "seeds are added until a gain shows": replace(
                "[spread(values) for values in pairs]",
                "[None if abs(sum(values)) < difference else spread(values) for values in pairs]",
            ),
        },
        "_pairs": {
            "sums do not count": replace(
                "[paired_differences(values, base) for values in others] + sums",
                "[paired_differences(values, base) for values in others]",
            )
        },
        "seeds_for": {"one seed too few": replace("return high", "return low", nth=1)},
    },
    "comparison/seeds.py": {
        "add_seeds": {
            "seeds trained ahead all count": replace("return count, failed", "return trained, failed"),
            "stops at a seed that is left out": replace(
                "range(checked + 1, trained + 1)", "range(trained, trained + 1)"
            ),
        },
    },
    "comparison/answer.py": {
        "_chosen": {
            "a rival that wins is not recommended": replace(
                "rival['verdict'] == 'worse'", "rival['verdict'] == 'none'"
            ),
        },
        "_gain": {"the largest score is the largest gain": replace("score.higher_is_better", "True")},
        "_missed_budgets": {"a missed budget is not said": replace("abs(mean - target) > MISSED", "mean < 0")},
        "_nothing_learned": {
            "networks that guess are judged": replace(
                "any(_beats(score, row[score.name], reached) for row in rows)", "True"
            ),
        },
        "_beats": {
            "a mean above the constant answer is enough": replace("row['mean'] if end is None else end", "row['mean']"),
        },
        "_still_open": {
            "seeds that change nothing are not mentioned": replace("len(set(row[score.name]['values'])) == 1", "False"),
            "all gates have the detectable difference of the first": replace("len(set(limits)) == 1", "True"),
            "thousands of seeds are advised": replace("seeds > _MOST_SEEDS", "False"),
        },
        "_command": {
            "the command has the old number of seeds": replace("str(seeds)", "'3'"),
            "the command detects what it has detected": replace("detect is not None", "False"),
        },
        "_with_option": {"an option is given twice": replace("word.startswith(f'{option}=')", "False")},
        "_detect_not_reached": {"a difference that is too small is not mentioned": replace("not limits", "True")},
    },
    "comparison/judging.py": {
        "_check_may_write": {
            "judge replaces the results of a comparison": replace("(out / 'runs').is_dir()", "False"),
        },
    },
    "comparison/given_results.py": {
        "_shared_seeds": {
            "seeds are left out without their reason": replace("seed not in shared", "False"),
            "seeds paired by position": replace(
                "all(seed in of_seeds for of_seeds in scores.values())", "True or scores"
            ),
        },
    },
    "comparison/kept_runs.py": {
        "_variants": {
            "a rival's runs are another variant": replace(
                "of_folder.get(run.parent.name, run.parent.name)", "run.parent.name"
            ),
        },
        "_add_rivals": {
            "gates of other comparisons have rivals": replace("rival.gates in given.scores", "True"),
            "rivals are compared as gates": replace("name not in networks", "True"),
        },
        "_check_same_images": {"runs of other images are paired": replace("there != found", "False")},
        "_unfinished": {"unfinished runs are not mentioned": replace("folder.rglob(f'seed_*/{LOG}')", "()")},
        "_curve": {"a log without the score is a traceback": replace("entry not in row", "False")},
        "of_runs": {
            "test scores of seeds that others lack": replace("str(_seed(run / METRICS)) in shared", "True"),
        },
    },
    "comparison/given_table.py": {
        "_name": {
            "a variant may have no name": remove("if cell is None or cell == '': ..."),
            "seed 1.0 is another one than 1": replace("key == 'seed'", "False"),
        },
        "_number": {"True is no number": replace("_TRUTH.get(str(cell).lower(), cell)", "cell")},
        "of_table": {
            "fewer errors are worse": replace("ACCURACY if score.higher_is_better else share", "ACCURACY"),
            "0 and 1 are percentages": replace("score.given_unit in {'', PERCENT}", "not score.given_unit"),
            "a row that is there twice replaces the first": replace("image in of_seed", "False"),
        },
    },
    "comparison/score_files.py": {
        "_one_value": {"JSON lines need their suffix": replace("'Extra data' in str(error)", "False")},
        "ScoreFile._file": {
            "first of several score files": replace("len(files) != 1", "not files"),
            "a score file is not found where it is named": replace("named.is_file()", "False"),
        },
        "ScoreFile.read": {
            "best is always the highest": replace("max if higher_is_better else min", "max"),
            "a number of an earlier epoch that is none fails a training": replace("self.which == 'last'", "False"),
        },
    },
    "comparison/command_comparison.py": {
        "compare_command": {
            "a command replaces the results of a comparison": replace(
                "sorted(out.glob(f'runs/*/seed_*/{METRICS}'))", "[]"
            ),
        },
        "_read_score": {
            "one training without a score ends a comparison": replace("not found", "True"),
            "a score may be 7000 %": remove("score.check(value, str(folder))"),
        },
        "_empty_ends": {"the score of an earlier epoch is not shown": replace("rows != usual", "False")},
    },
    "comparison/script_runs.py": {
        "ScriptRun.is_finished": {
            "runs of another command are used": replace("read_json(folder / _DONE)", "self._record()")
        },
        "ScriptRun.train": {
            "output of an interrupted run is kept": remove("shutil.rmtree(folder / _OUTPUT, ignore_errors=True)"),
            "a failed command counts": remove("if code: ..."),
        },
        "_hold": {"two commands write to one folder": remove("fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)")},
        "_stop": {
            "without process groups a command goes on": remove("process.kill()"),
            "a second signal leaves a command alone": replace("BaseException", "subprocess.TimeoutExpired"),
        },
    },
    "core/run_files.py": {
        "folder_name": {
            "gates share a folder": replace(
                "re.sub('[^a-zA-Z0-9_.=-]+', '-', variant.replace(':', '--'))",
                "variant.partition(':')[0]",
            ),
        },
    },
    "core/statistics.py": {
        "interval_within": {
            "interval of the logit is not scaled": replace("reach * width / (below * above)", "reach"),
            "intervals cross one limit": replace("math.isinf(below) and math.isinf(above)", "math.isinf(above)"),
        },
    },
    "comparison/verdicts.py": {
        "baseline_of": {
            "first gate is the baseline": replace(
                "'none' if 'none' in names else next(iter(names))", "next(iter(names))"
            ),
        },
        "score_row": {"seeds that agree are exact": replace("images.dtype != torch.bool", "True")},
        "judged": {
            "p not corrected": replace(
                "statistics.holm([difference.p for difference in found.values()])",
                "[difference.p for difference in found.values()]",
            ),
            "detectable difference without Holm": replace(
                "level / max(1, sum(difference.p is not None for difference in found.values()))", "level"
            ),
        },
    },
    "comparison/report.py": {
        "draw_costs": {
            "intervals over images are called those over seeds": replace(
                "v[score.name].get('over', 'seeds')", "'seeds'"
            ),
        },
        "_by_class": {
            "classes of the first gate only": replace(
                "(label for scores in found.values() for label in scores)", "next(iter(found.values()))"
            ),
        },
    },
    "comparison/run.py": {
        "compare": {
            "held: comparisons do not lock": replace(
                "with processes.holding_folder(out):\n    ...", "if True:\n    ..."
            ),
        },
        "_Comparison.__init__": {
            "newer results overwritten": remove("check_format_not_newer(asked.out / RESULTS, SCHEMA, 'schema')"),
            "seed not passed on": replace("recipe.of_comparison(name, seed)", "recipe.of_comparison(name, 0)"),
        },
        "_command": {
            "the command forgets the trackers": replace("tuple(asked.track) == DEFAULT", "True"),
            "the command forgets the workers": replace("asked.workers == usable_processors()", "True"),
        },
        "_Comparison.results": {
            "the answer does not know the constant answer": remove("if self.constant is not None: ..."),
        },
        "_Comparison.train_seeds": {
            "runs of one process join those of two": replace("if left:\n    ...", "if False:\n    ..."),
        },
        "_train_in_turn": {
            "comparison continues on a full disk": replace("errors.UnsavedError", "()"),
            "runs trained again": replace(
                "train(run, folder, resume=True, **options)",
                "__import__('shutil').rmtree(folder, ignore_errors=True); train(run, folder, resume=True, **options)",
            ),
            "one failure ends a comparison": replace("failed.setdefault(name, f'seed {run.seed}: {error}')", "raise"),
        },
        "_checked_dataset": {
            "newer run in a comparison found late": remove("check_run_format(file.parent)"),
            "weights for a gater used without gater": flip("getattr(run, field) == unused"),
            "other recipes not checked": remove(
                "existing.check_same_recipe(base.of_comparison(existing.gate, existing.seed), file.parent)"
            ),
        },
        "_check_plain": {"a plain baseline with gates": replace("if found:\n    ...", "if False:\n    ...")},
    },
    "comparison/run_results.py": {
        "results_of_runs": {
            "precisions are mixed": replace("check_trained_alike", "dict"),
            "a comparison is judged by accuracy": replace("score = task.score.name", "score = 'pixel_accuracy'"),
            "images paired with themselves": replace("images[baseline]", "images[name]", nth=1),
        },
        "add_corruptions": {
            "corrupted images have a level of their own": replace("results['level']", "0.05"),
        },
        "_row": {
            "work of the dense network compared": replace("_work(metrics)", "{}"),
            "curves in the order of seeds lost": replace("f'validation_{score}'", "'train_accuracy'"),
        },
        "_further_scores": {
            "intervals of further scores leave their limits": replace(
                "score_row(score, [run[score.name] for run in runs])",
                "dataclasses.asdict(statistics.mean_interval([run[score.name] for run in runs]))",
            ),
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
    },
    "comparison/rival_rows.py": {
        "RivalRows.of_finished": {"a failed rival is judged": replace("row in finished", "True")},
        "RivalRows.judge": {
            "rivals judged without correction": replace(
                "statistics.holm([difference.p for difference in differences])",
                "[difference.p for difference in differences]",
            ),
            "gates judged against themselves": replace("scores[row]", "scores[name]"),
            "the plain network as rival is tested twice": replace("row != baseline", "True"),
        },
        "missing_rivals": {"a GaterNet without rival is not mentioned": replace("'open_fraction' in v", "False")},
    },
}
