"""Which rows of a comparison are rivals of which gates, and whether the gates beat them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatewise.comparison.rivals import Rival
from gatewise.comparison.verdicts import difference_row, level_of
from gatewise.core import statistics
from gatewise.training import Score


@dataclass(frozen=True)
class RivalRows:
    """Which rows of a comparison are rivals of which choices of gates.

    Attributes:
        gates: the choices of gates, in the order of their rows.
        of: row of the rival of each choice of gates, by kind of cost.
    """

    gates: Sequence[str]
    of: Mapping[str, Mapping[str, str]]

    @classmethod
    def among(cls, gates: Sequence[str], rivals: Sequence[Rival], plain: str) -> "RivalRows":
        """Return the rows of rivals; that of the network `plain` is the row "none" if the gates include it."""
        of: dict[str, dict[str, str]] = {}
        for rival in rivals:
            if rival.network:
                row = "none" if rival.network == plain and "none" in gates else rival.network
                of.setdefault(rival.gates, {})[rival.cost] = row
        return cls(tuple(gates), of)

    @property
    def rows(self) -> list[str]:
        """All rows, each choice of gates followed by its rivals.

        >>> RivalRows(["none", "se", "gct"], {"se": {"macs": "none"}, "gct": {"params": "a", "macs": "b"}}).rows
        ['none', 'se', 'gct', 'a', 'b']
        """
        others = {name: [row for row in self.of.get(name, {}).values() if row not in self.gates] for name in self.gates}
        return list(dict.fromkeys(row for name in self.gates for row in (name, *others[name])))

    def of_finished(self, finished: Collection[str]) -> "RivalRows":
        """Return the rows without those whose trainings failed."""
        of = {
            name: {cost: row for cost, row in rows.items() if row in finished}
            for name, rows in self.of.items()
            if name in finished
        }
        return RivalRows([name for name in self.gates if name in finished], of)

    def rival_of(self, row: str) -> dict[str, list[str]]:
        """Return the choices of gates that a row is a rival of, each with the kinds of cost."""
        found = {name: [cost for cost, rival in rows.items() if rival == row] for name, rows in self.of.items()}
        return {name: costs for name, costs in found.items() if costs}

    def entries(self, rows: Iterable[str], against: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return what the row of each variant in `results.json` says about rivals.

        Args:
            rows: names of the rows.
            against: what `judge` returns.

        Returns:
            By row, where there is one: "rival_of", and for gates "rivals" and "against_rivals".
        """
        found: dict[str, dict[str, Any]] = {name: {} for name in rows}
        for name, entry in found.items():
            if rival_of := self.rival_of(name):
                entry["rival_of"] = rival_of
            if name in against:
                entry |= {"rivals": self.of[name], "against_rivals": against[name]}
        return found

    def judge(
        self,
        scores: Mapping[str, Sequence[float]],
        score: Score,
        baseline: str,
        verdicts: Mapping[str, Mapping[str, Any]],
        *,
        stopped: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Return whether each choice of gates beats its rivals: differences paired by seed, and verdicts.

        All these tests are corrected together by Holm's method, apart from those against the baseline, of which there
        are verdicts already. A row that is the rival for two kinds of cost is one test.

        Args:
            scores: scores of each row by seed.
            score: the score.
            baseline: row to which all gates are compared.
            verdicts: what `judged` returns for this baseline.
            stopped: see `judged`.

        Returns:
            By choice of gates and kind of cost: "gates" (row of the rival), "difference", "p_holm" and "verdict".
        """
        pairs = list(
            dict.fromkeys((name, row) for name, rows in self.of.items() for row in rows.values() if row != baseline)
        )
        differences = [statistics.paired_difference(scores[name], scores[row]) for name, row in pairs]
        corrected = statistics.holm([difference.p for difference in differences])
        judged = {
            pair: {
                "gates": pair[1],
                "difference": difference_row(difference, score),
                "p_holm": p,
                "verdict": statistics.verdict(
                    difference, p, higher_is_better=score.higher_is_better, alpha=level_of(stopped=stopped)
                ),
            }
            for pair, difference, p in zip(pairs, differences, corrected, strict=True)
        }
        shown = ("difference", "p_holm", "verdict")
        judged |= {
            (name, baseline): {"gates": baseline, **{key: of[key] for key in shown}} for name, of in verdicts.items()
        }
        return {name: {cost: judged[name, row] for cost, row in rows.items()} for name, rows in self.of.items()}


def missing_rivals(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence if networks that choose their filters have no plain rival of equal multiply-adds."""
    tried = {rival["gates"] for rival in results.get("chosen_rivals", []) if rival["cost"] == "macs"}
    alone = [v["gates"] for v in results["variants"] if "open_fraction" in v and v["gates"] not in tried]
    if not alone:
        return []
    what = "whether a narrower plain network with as many multiply-adds does as well was not tried"
    return [f"{' and '.join(alone)}: only open filters count; {what}: add --rivals macs."]
