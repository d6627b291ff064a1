"""Add seeds until a difference of a given size can be detected."""

from collections.abc import Callable, Mapping, Sequence

from gatewise.core.power import FEWEST_SEEDS, expected_seeds, may_stop

Scores = Mapping[str, Sequence[float]]


def add_seeds(
    train: Callable[[range], Mapping[str, str]],
    scores: Callable[[range, Mapping[str, str]], Scores],
    baseline: str,
    *,
    most: int,
    detect: float | None,
    at_once: bool = False,
) -> tuple[int, dict[str, str]]:
    """Train seeds until they are enough, and return their number and the reasons of failed choices.

    Whether seeds 0 to n - 1 are enough depends on their scores only, so a comparison that is continued, or whose seeds
    are trained in another order, ends with the same number.

    Args:
        train: trains the seeds of a range; returns the reasons of failed choices.
        scores: returns the scores of the seeds of a range, given the failed choices.
        baseline: the choice to which the others are compared.
        most: number of seeds at the end.
        detect: difference to detect, in the unit of the scores; None trains `most` seeds.
        at_once: train as many seeds together as are expected to be needed; those that are not needed are left out.
    """
    if detect is None:
        return most, dict(train(range(most)))
    failed: dict[str, str] = {}
    checked, trained = 0, min(most, FEWEST_SEEDS)
    failed.update(train(range(trained)))
    while True:
        found = scores(range(trained), failed)
        for count in range(checked + 1, trained + 1):
            if baseline in found and may_stop({name: of[:count] for name, of in found.items()}, baseline, detect):
                return count, failed
        if trained == most or len(found) < 2 or baseline not in found:
            return trained, failed
        expected = expected_seeds(found, baseline, detect) if at_once else None
        checked, following = trained, min(most, max(trained + 1, expected or 0))
        for name, reason in train(range(trained, following)).items():
            failed.setdefault(name, reason)
        trained = following
