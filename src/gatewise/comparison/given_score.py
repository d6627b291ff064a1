"""The score of results that were made elsewhere, and of a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatewise import errors
from gatewise.training import Score, score_named
from gatewise.training.tasks.base import decimal

NAME = "score"  # key of a given score, so that no name of the user's meets another key
PERCENT = "%"


@dataclass(frozen=True)
class GivenScore(Score):
    """A score of which only its title, unit and direction are known; it is shown as it is given, a fraction in percent.

    Attributes:
        given_unit: unit of the numbers; with "%" they lie between 0 and 100.
    """

    name: str = NAME
    title: str = NAME
    is_fraction: bool = False
    given_unit: str = ""

    @property
    def unit(self) -> str:
        return f" {self.given_unit}" if self.given_unit else super().unit

    @property
    def label(self) -> str:
        return f"{self.title} ({self.given_unit})" if self.given_unit else super().label

    @property
    def points(self) -> str:
        return f" {self.given_unit}" if self.given_unit not in {"", PERCENT} else " points" if self.unit else ""

    @property
    def limits(self) -> tuple[float, float]:
        return (0.0, 100.0) if self.given_unit == PERCENT else super().limits

    def check(self, value: float, where: str) -> None:
        """Raise `DataError` if a number is outside of the limits."""
        low, high = self.limits
        if not low <= value <= high:
            raise errors.DataError(f"{where}: expected a {self.title} from {low:g} to {high:g} %, got {value:g}.")

    def number(self, value: float, sign: str = "") -> str:
        if self.is_fraction or self.given_unit == PERCENT:
            return f"{self.factor * value:{sign}z.2f}"
        return decimal(value, 4, sign)

    def details(self) -> dict[str, Any]:
        """Return what `score_of` reads from `results.json`."""
        return {
            "title": self.title,
            "unit": self.given_unit,
            "higher_is_better": self.higher_is_better,
            **({"is_fraction": True} if self.is_fraction else {}),
        }


def score_of(results: Mapping[str, Any]) -> Score:
    """Return the score of a comparison from the content of `results.json`."""
    if (given := results.get("given_score")) is not None:
        return GivenScore(
            title=given["title"],
            given_unit=given["unit"],
            higher_is_better=given["higher_is_better"],
            is_fraction=given.get("is_fraction", False),
        )
    return score_named(results.get("score", "accuracy"))
