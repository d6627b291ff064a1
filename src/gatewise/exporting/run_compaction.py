"""Compact a run: write a new run without the filters that are closed for all training images."""

from pathlib import Path
from typing import Any

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import check_folder_writable, new_folder, read_bytes, write_atomically
from gatewise.core.run_files import LOG, RECIPE
from gatewise.gaternet import GaterNet
from gatewise.graph.measure import environment
from gatewise.inference import Compaction, compact
from gatewise.models.serialization import details_in, save_model, write_metrics
from gatewise.training import Progress, evaluate
from gatewise.training.runs import Run


def compact_run(
    folder: str | Path,
    out: str | Path,
    *,
    images: int | None = None,
    data: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compact the GaterNet of a run over its training images, and write it as a new run folder.

    Args:
        folder: folder of a finished run.
        out: new run folder.
        images: number of training images over which constant gates are found; None takes all.
        data: data set to use instead of the run's own.
        progress: where to show progress; None shows nothing.

    Returns:
        The metrics of the new run, with the score before compaction and the compaction itself.

    Raises:
        ValueError: the run has no gater, its images cannot be found, `out` is not empty, or `images` is below 1.
    """
    if images is not None:
        _validation.check_integer_at_least(1, images=images)
    say = (progress or Progress(quiet=True)).say
    out = Path(out)
    check_folder_writable(out)
    if out.exists() and any(out.iterdir()):
        raise errors.InvalidValueError(f"{out} is not empty. Give a new folder.")
    run = Run.open(folder, data).checked()
    if not isinstance(run.model, GaterNet):
        raise errors.InvalidValueError(
            f"{folder} has no gater: all its filters are open. Train one with a gater: gatewise train --budget 0.5 ..."
        )
    run.check_has_images()
    say("finding constant gates")
    small = compact(run.model, run.of("train").first(images), check=run.first())
    compaction: Compaction = small.compaction
    say("evaluating both networks")
    before, after = (evaluate(model, run.batches(), run.new_results()).results for model in (run.model, small))
    work = {"open_fraction", "executed_macs", "budget"}
    if not isinstance(small, GaterNet):
        after["executed_macs"] = compaction.macs_after
    metrics = {
        **{name: value for name, value in run.metrics.items() if name not in work},
        "score": run.score.name,
        **{name: value for name, value in after.items() if isinstance(value, int | float)},
        f"{run.score.name}_before": before[run.score.name],
        "executed_macs_before": before["executed_macs"],
        "parameters": compaction.parameters_after,
        "environment": environment(run.device),
        "compaction": compaction.to_dict(),
    }
    steps = [*run.config.get("compacted", []), compaction.to_dict()]
    with new_folder(out) as temporary:
        for name in (RECIPE, LOG):
            if (run.folder / name).exists():
                write_atomically(temporary / name, read_bytes(run.folder / name))
        save_model(temporary, small, run.spec, {**details_in(run.config), "compacted": steps})
        return write_metrics(temporary, metrics)
