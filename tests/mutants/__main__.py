"""Run mutants: `python -m mutants`, with the folder `tests` on PYTHONPATH.

Ends with exit code 1 if one survives, or if more than 5 % of all that are listed do not apply to the code.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

from . import catalogue, draw
from .mutant import Mutant
from .runner import Limits, Outcome, run
from .warm import warm_up

ROOT = Path(__file__).parents[2]
MOST_LOST = 0.05  # of all mutants, that may no longer apply


def main(arguments: list[str] | None = None) -> int:
    """Check or run mutants as the command line says, and return the exit code."""
    chosen = _parser().parse_args(arguments)
    mutants = catalogue.all_mutants()
    lost = catalogue.not_applicable(mutants, ROOT / "src/gatewise")
    for mutant, reason in lost.items():
        print(f"does not apply  {title(mutant)}: {reason}")
    too_many = len(lost) > MOST_LOST * len(mutants)
    if too_many:
        print(f"{len(lost)} of {len(mutants)} mutants do not apply, more than {MOST_LOST:.0%}: fix or remove them")
    outcomes = {}
    if not chosen.check:
        outcomes = _run(_queue(chosen, [mutant for mutant in mutants if mutant not in lost]), mutants, chosen)
    survived = [mutant for mutant, outcome in outcomes.items() if not outcome.caught]
    _summarise(outcomes)
    caught = len(outcomes) - len(survived)
    print(f"mutants: {len(outcomes)} run, {caught} caught, {len(survived)} survived, {len(lost)} do not apply")
    return 1 if survived or too_many else 0


def title(mutant: Mutant) -> str:
    """Return where a mutant is and its name."""
    return f"{mutant.module} {mutant.symbol}".strip() + f": {mutant.name}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which mutants do not apply to the code")
    parser.add_argument("--only", metavar="WORD", default="", help="with this word in name, module or symbol")
    parser.add_argument("--shard", metavar="K/N", default="1/1", help="every N-th mutant, from the K-th on")
    parser.add_argument("-n", type=int, metavar="N", help="draw at least N mutants by the hash of the commit")
    parser.add_argument("--minutes", type=float, default=0.0, help="with -n: go on until so many minutes are used")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that run mutants")
    return parser


def _queue(chosen: argparse.Namespace, mutants: list[Mutant]) -> list[Mutant]:
    """Return the mutants to run, in order; print how they were drawn."""
    mutants = [mutant for mutant in mutants if chosen.only in f"{title(mutant)} {mutant.key}"]
    if chosen.n is None:
        first, step = map(int, chosen.shard.split("/"))
        return mutants[first - 1 :: step]
    commit, changed = draw.commit(ROOT), draw.changed_modules(ROOT)
    recent = sum(mutant.module in changed for mutant in mutants)
    more = f", and more until {chosen.minutes:g} minutes are used" if chosen.minutes else ""
    print(f"sample: at least {chosen.n} of {len(mutants)} mutants{more}, drawn by commit {commit[:12] or 'unknown'};")
    print(f"first the {recent} in {len(changed)} files that the last {draw.COMMITS} commits changed", flush=True)
    return draw.drawn(mutants, commit, changed)


def _run(mutants: list[Mutant], listed: list[Mutant], chosen: argparse.Namespace) -> dict[Mutant, Outcome]:
    begin = time.monotonic()
    warm_up()
    limits = Limits(len(mutants) if chosen.n is None else chosen.n, 60 * chosen.minutes)
    outcomes = {}
    for mutant, outcome in run(mutants, listed, ROOT, limits, chosen.workers):
        outcomes[mutant] = outcome
        word = "caught  " if outcome.caught else "SURVIVED"
        print(f"{word} {outcome.seconds:5.1f} s  {title(mutant)} | {outcome.reason}", flush=True)
    if chosen.n is not None:
        recent = {mutant.module for mutant in outcomes} & draw.changed_modules(ROOT)
        print(f"sample: {len(outcomes)} of {len(mutants)} mutants were run, in {len(recent)} of the changed files")
    print(f"{time.monotonic() - begin:.0f} s in all")
    return outcomes


def _summarise(outcomes: dict[Mutant, Outcome]) -> None:
    for mutant, outcome in outcomes.items():
        if not outcome.caught:
            print(f"survived: {title(mutant)} ({mutant.change}): {outcome.reason}")
    if outcomes:
        seconds = [outcome.seconds for outcome in outcomes.values()]
        print(f"seconds a mutant: median {statistics.median(seconds):.1f}, mean {statistics.mean(seconds):.1f}")


if __name__ == "__main__":
    sys.exit(main())
