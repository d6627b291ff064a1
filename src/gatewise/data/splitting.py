"""The rule that divides images into train, validation and test: deterministic, stratified, never through a group."""

import hashlib
import heapq
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.folders import Location
from gatewise.data.labels import Kind
from gatewise.data.layout import split_of
from gatewise.data.reading import NO_SPLIT, OtherReading, Reading

RULE = 2  # version of `held_out`
_BINS = 10  # most parts of the sorted numbers
_ROUNDING = 1e-9  # upper bound of the rounding error of a number of images


class Split(Protocol):
    """What can be divided: images with anything else of each."""

    @property
    def columns(self) -> Mapping[str, Sequence[Any]]: ...

    def of(self, chosen: Sequence[int]) -> Self: ...


AnySplit = TypeVar("AnySplit", bound=Split)


def named_splits(location: Location, splits: Mapping[str, AnySplit], reading: Reading) -> dict[str, AnySplit]:
    """Return train, and validation and test if they are given, as the options of `reading` name them.

    Where a trained network is tried, validation or else test images stand for all if there are none for training.

    Raises:
        DataError: an option names a split or a value that is not there, or there is no split for training.
    """
    found = dict(splits)
    chosen: dict[str, AnySplit] = {}
    for role, option in (("validation", reading.validation_split), ("test", reading.test_split)):
        if isinstance(option, str) and option != NO_SPLIT:
            chosen[role] = _taken(location, found, role, option)
    for role in ("validation", "test"):
        if role in found and role not in chosen and not (role == "test" and reading.test_split == NO_SPLIT):
            chosen[role] = found.pop(role)
    if "train" not in found and chosen and isinstance(reading, OtherReading):
        only = next(iter(chosen))
        found["train"] = chosen.pop(only)
        location.reading = replace(reading, stands_for_all=only)
    if "train" not in found:
        found_there = f"found {', '.join(splits) or 'nothing'}"
        if isinstance(reading, OtherReading):
            raise errors.DataError(f"{location} has no images with labels to score, {found_there}.")
        raise errors.DataError(f"{location} has no train split, {found_there}; expected images to train on.")
    return {"train": found["train"], **chosen}


def _taken(location: Location, splits: dict[str, AnySplit], role: str, option: str) -> AnySplit:
    """Remove and return the split that an option names: a split, or the rows of train with COLUMN=VALUE."""
    column, equals, value = option.partition("=")
    if equals and (train := splits.get("train")) is not None:
        if column not in train.columns:
            columns = _validation.listed(list(train.columns)) or "none"
            raise errors.DataError(
                f"{location} has no column {column!r} ({role}_split {option!r}); columns: {columns}."
            )
        values = [str(cell) for cell in train.columns[column]]
        inside = [row for row, cell in enumerate(values) if cell == value]
        if not inside or len(inside) == len(values):
            raise errors.DataError(
                f"{location}: {len(inside):,} of {len(values):,} rows have {option}; expected some and not all. Values "
                f"of {column}: {_validation.listed(sorted(set(values)), 8)}."
            )
        splits["train"] = train.of([row for row, cell in enumerate(values) if cell != value])
        return train.of(inside)
    name = option if option in splits else split_of(option)
    if name not in splits or name == "train":
        raise errors.DataError(
            f"{location} has no split {option!r} ({role}_split); splits: {', '.join(splits)}. For a fraction give a "
            f"number such as 0.2."
        )
    return splits.pop(name)


def strata_of(labels: Sequence[Any], kind: Kind, fraction: float = 1.0) -> list[tuple[int, ...]]:
    """Return the strata of each image: its class, its classes, or the part of the sorted first numbers.

    There are at most ten parts, and not more than the images that a fraction of all holds out.
    """
    if kind == "class":
        return [(label,) for label in labels]
    if kind == "classes":
        return [tuple(label) or (-1,) for label in labels]
    values = sorted(label[0] for label in labels)
    bins = min(_BINS, int(fraction * len(values) + 0.5))
    bounds = [values[len(values) * part // bins] for part in range(1, bins)]
    return [(bisect_right(bounds, label[0]),) for label in labels]


def held_out(
    keys: Sequence[str],
    groups: Sequence[int],
    strata: Sequence[tuple[int, ...]],
    fraction: float,
    seed: int,
    purpose: str = "",
) -> list[int]:
    """Return the indices of the images that are held out.

    The groups are visited in the order of a checksum of their smallest key, those with rare strata first. An image is
    held out if its rarest stratum still lacks images, a group of several if that brings all its strata closer to
    `fraction`; each stratum keeps a group for training. Then images are added, those that disturb the strata least
    first, until `fraction` of all is reached. So the same files give the same split on every machine, and new files
    move few old ones.

    Args:
        keys: name of each image, as `keys_of` returns them.
        groups: group of each image; no group is divided.
        strata: strata of each image.
        fraction: fraction of all images and of each stratum, of which at least one is held out if it has two groups.
        seed: seed of the order.
        purpose: changes the order, so that test and validation images are drawn independently.

    >>> held_out(["a", "b", "c", "d"], [0, 1, 2, 3], [(0,), (0,), (1,), (1,)], 0.5, seed=0)
    [1, 2]
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    counts = {group: _counted([strata[index] for index in own]) for group, own in members.items()}
    rarity = Counter(s for count in counts.values() for s in count)  # number of groups of each stratum

    def rank(group: int) -> tuple[int, bytes]:
        own = members[group]
        first = keys[own[0]] if len(own) == 1 else min(keys[index] for index in own)
        return min(rarity[s] for s in counts[group]), hashlib.sha256(f"{purpose}{seed}/{first}".encode()).digest()

    order = {group: counts[group] for group in sorted(members, key=rank)}
    chosen = _Chosen(order, {group: len(own) for group, own in members.items()}, rarity, fraction)
    chosen.fill_strata()
    chosen.fill_total()
    return sorted(index for group in chosen.groups for index in members[group])


def _counted(strata: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """Return the number of images in each stratum."""
    return dict.fromkeys(strata[0], 1) if len(strata) == 1 else Counter(s for own in strata for s in set(own))


class _Chosen:
    """The groups that are held out, and what is missing.

    Args:
        counts: number of images of each group in each stratum; groups are visited in this order.
        sizes: number of images of each group.
        rarity: number of groups of each stratum.
        fraction: fraction of all images and of each stratum that is to be held out.

    Attributes:
        groups: the groups that are held out.
    """

    def __init__(
        self,
        counts: Mapping[int, Mapping[int, int]],
        sizes: Mapping[int, int],
        rarity: Mapping[int, int],
        fraction: float,
    ) -> None:
        self.groups: set[int] = set()
        self._counts, self._sizes, self._rarity = counts, sizes, rarity
        self._left = dict(rarity)  # groups of each stratum for training
        images = dict.fromkeys(rarity, 0)
        for count in counts.values():
            for stratum, number in count.items():
                images[stratum] += number
        self._target = {s: fraction * number for s, number in images.items()}
        self._missing: dict[int, float] = {s: int(wanted + _ROUNDING) for s, wanted in self._target.items()}
        self._short = int(fraction * sum(sizes.values()) + 0.5)  # images in all

    def _take(self, group: int) -> None:
        self.groups.add(group)
        self._short -= self._sizes[group]
        for stratum, number in self._counts[group].items():
            self._missing[stratum] -= number
            self._left[stratum] -= 1

    def _free(self, group: int) -> bool:
        """Return whether a group can be taken: each of its strata has another group for training."""
        return group not in self.groups and all(self._left[s] > 1 for s in self._counts[group])

    def _gain(self, group: int) -> float:
        """Return by how many images a group brings its strata closer to their targets."""
        return sum(abs(self._missing[s]) - abs(self._missing[s] - n) for s, n in self._counts[group].items())

    def fill_strata(self) -> None:
        """Take whole numbers of images of each stratum, and at least one where two groups have it."""
        for group, count in self._counts.items():
            if self._sizes[group] == 1:
                fits = self._missing[min(count, key=self._rarity.__getitem__)] > 0
            else:
                fits = self._gain(group) > 0
            if fits and self._short > 0 and self._free(group):
                self._take(group)
        for stratum, groups in self._rarity.items():
            if self._left[stratum] == groups > 1:
                fitting = [group for group, count in self._counts.items() if stratum in count and self._free(group)]
                if fitting:
                    self._take(min(fitting, key=self._sizes.__getitem__))

    def fill_total(self) -> None:
        """Take groups until the fraction of all images is reached, those with the highest gain first.

        Of groups with the same gain those of common strata are first.
        """
        if self._short <= 0:
            return
        for stratum, wanted in self._target.items():
            self._missing[stratum] += wanted - int(wanted + _ROUNDING)
        queue = [(-self._gain(group), -place, group) for place, group in enumerate(self._counts) if self._free(group)]
        heapq.heapify(queue)
        while queue and self._short > 0:
            loss, place, group = heapq.heappop(queue)
            now, size = -self._gain(group), self._sizes[group]
            if now > loss + _ROUNDING:  # others were taken since; gains only fall
                heapq.heappush(queue, (now, place, group))
            elif self._free(group) and size <= self._short and (size == 1 or now < size):
                self._take(group)
