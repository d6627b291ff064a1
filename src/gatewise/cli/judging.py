"""The judge command."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gatewise.cli.app import Json, app, print_answer, print_json, print_table


@app.command
def judge(
    source: Path,
    /,
    *,
    baseline: str | None = None,
    out: Path | None = None,
    lower_is_better: Annotated[bool, Parameter(negative="")] = False,
    unit: str = "",
    json_output: Json = False,
) -> None:
    """Judge results of trainings made elsewhere: what to use, how sure that is, and what is still open.

    Example: gatewise judge scores.csv --unit % --out judged

    Parameters
    ----------
    source
        CSV, TSV, JSON lines or parquet table with columns variant, seed and score (or another name), a row for each
        training, or for each image with a column image too; an empty score is a training that failed. Or a folder of
        finished runs, VARIANT/seed_N, with metrics.json and, if kept, log.jsonl and predictions.safetensors.
    baseline
        Variant to which the others are compared [none, or the first].
    out
        Folder for results.json, results.md and report.html, which are replaced.
    lower_is_better
        Lower scores of the table are better.
    unit
        Unit of the scores of the table; with % they lie between 0 and 100.
    json_output
        Print the results as JSON.
    """
    from gatewise.comparison import judge as judge_results
    from gatewise.comparison import table as comparison_table
    from gatewise.core.wording import as_lines

    results = judge_results(source, baseline=baseline, out=out, lower_is_better=lower_is_better, unit=unit)
    if json_output:
        print_json(results)
        return
    print_answer(results)
    print_table(comparison_table(results))
    for line in as_lines(results["notes"]):
        print(line)
    if out is not None:
        print(f"report: {(out / 'report.html').resolve()}")
