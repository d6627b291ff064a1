"""Judge results that were made elsewhere: a table of scores, or a folder of finished runs without their weights."""

from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.comparison.given_results import SCHEMA, results_of
from gatewise.comparison.given_score import GivenScore
from gatewise.comparison.given_table import of_table
from gatewise.comparison.kept_runs import of_runs
from gatewise.comparison.report import write_report
from gatewise.core import _validation
from gatewise.core.files import check_folder_writable, check_format_not_newer, write_json
from gatewise.core.run_files import RESULTS


def judge(
    source: str | Path,
    *,
    baseline: str | None = None,
    out: str | Path | None = None,
    lower_is_better: bool = False,
    unit: str = "",
) -> dict[str, Any]:
    """Judge results of trainings: intervals, differences to a baseline, verdicts, what could be seen, and a report.

    Args:
        source: a CSV, TSV, JSON lines or parquet table with columns variant, seed and score (or another name), a row
            for each training, or for each image with a column image too; or a folder of finished runs, VARIANT/seed_N
            with metrics.json and, if kept, log.jsonl, predictions.safetensors, config.json and recipe.yaml; the
            rivals.json of the comparison, in it or in the folder above, says which variants are rivals of others.
        baseline: variant to which the others are compared; None takes none, or the first.
        out: folder for results.json, results.md and report.html; None writes none.
        lower_is_better: whether lower scores of a table are better; a run knows that of its own.
        unit: unit of the scores of a table, for example ms; with "%" they lie between 0 and 100.

    Returns:
        The content of `results.json`, as of `compare`.

    Raises:
        DataError: the table or a file of a run cannot be used.
        InvalidValueError: there is no such baseline, no seed that all variants have, or `out` contains a comparison.
        StorageError: `out` cannot be written.
    """
    if out is not None:
        _check_may_write(Path(out))
    source = _validation.check_path_exists("results", source)
    if source.is_dir():
        if lower_is_better or unit:
            raise errors.InvalidValueError("the score of runs is known; omit the unit and lower-is-better.")
        given = of_runs(source)
    else:
        given = of_table(source, GivenScore(higher_is_better=not lower_is_better, given_unit=unit))
    results = results_of(given, baseline, source)
    if out is not None:
        write_json(Path(out) / RESULTS, results)
        write_report(results, Path(out))
    return results


def _check_may_write(out: Path) -> None:
    """Raise if results cannot be written to a folder, or would replace those of `compare`, which has measured more."""
    check_folder_writable(out)
    check_format_not_newer(out / RESULTS, SCHEMA, "schema")
    if (out / RESULTS).exists() and (out / "runs").is_dir():
        raise errors.InvalidValueError(f"{out} contains a comparison. Choose another --out.")
