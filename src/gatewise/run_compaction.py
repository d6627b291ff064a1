"""Make of a trained run another one without the filters that are closed for all images."""

from pathlib import Path
from typing import Any

from gatewise import _validation, errors
from gatewise.analysis.runs import open_runs
from gatewise.execution import Compaction, compact
from gatewise.files import new_folder, read_bytes, write_atomically
from gatewise.gaternet import GaterNet
from gatewise.measure import environment
from gatewise.serialization import details_in, save_model, write_metrics
from gatewise.training import Progress, evaluate


def compact_run(
    folder: str | Path,
    out: str | Path,
    *,
    images: int | None = None,
    data: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compact the GaterNet of a run over its training images, and write a run folder that opens like any other.

    Args:
        folder: of a finished run.
        out: the new run folder.
        images: how many training images decide which gates are constant; None takes all.
        data: a data set in the place of the run's own.
        progress: where to show progress; None shows nothing.

    Returns the metrics of the new run: its score and the old one's, the work of both, and the compaction.

    Refused with ValueError: a run without a gater, one whose images cannot be found, an `out` that holds something,
    images below 1.
    """
    if images is not None:
        _validation.check_integer_at_least(1, images=images)
    say = (progress or Progress(quiet=True)).say
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise errors.InvalidValueError(f"{out} is not empty. Give a new folder.")
    (run,) = open_runs([folder], data)
    if not isinstance(run.model, GaterNet):
        raise errors.InvalidValueError(
            f"{folder} has no gater: all its filters are open. Train one with gatewise train --budget 0.5 ..."
        )
    if run.dataset is None:
        raise errors.DataError(f"the images of {folder} are needed: {run.missing}")
    say("finding the gates that never change")
    small = compact(run.model, run.of("train").first(images), check=run.first())
    compaction: Compaction = small.compaction
    say("evaluating both networks")
    before, after = (evaluate(model, run.batches(), run.new_results()).results for model in (run.model, small))
    metrics = {
        **run.metrics,
        "score": run.score,
        **{name: value for name, value in after.items() if isinstance(value, int | float)},
        f"{run.score}_before": before[run.score],
        "parameters": compaction.parameters_after,
        "environment": environment(run.device),
        "compaction": compaction.to_dict(),
    }
    steps = [*run.config.get("compacted", []), compaction.to_dict()]
    with new_folder(out) as temporary:
        for name in ("recipe.yaml", "log.jsonl"):
            if (Path(folder) / name).exists():
                write_atomically(temporary / name, read_bytes(Path(folder) / name))
        save_model(temporary, small, run.spec, {**details_in(run.config), "compacted": steps})
        return write_metrics(temporary, metrics)
