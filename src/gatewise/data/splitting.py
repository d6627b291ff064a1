"""The rule that divides images into train, validation and test: deterministic, stratified, never through a group."""

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.folders import Location
from gatewise.data.labels import Kind
from gatewise.data.layout import split_of
from gatewise.data.reading import NO_SPLIT, Reading

RULE = 1  # version of `held_out`
_BINS = 10  # of numbers, by quantile


class Split(Protocol):
    """What can be divided: images with anything else of each."""

    @property
    def columns(self) -> Mapping[str, Sequence[Any]]: ...

    def of(self, chosen: Sequence[int]) -> Self: ...


AnySplit = TypeVar("AnySplit", bound=Split)


def named_splits(location: Location, splits: Mapping[str, AnySplit], reading: Reading) -> dict[str, AnySplit]:
    """Return train, and validation and test if they are given, as the options of `reading` name them.

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
    if "train" not in found:
        raise errors.DataError(
            f"{location} has no train split, found {', '.join(splits) or 'nothing'}; expected images to train on."
        )
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


def strata_of(labels: Sequence[Any], kind: Kind) -> list[tuple[int, ...]]:
    """Return the strata of each image: its class, its classes, or the tenth of its first number."""
    if kind == "class":
        return [(label,) for label in labels]
    if kind == "classes":
        return [tuple(label) or (-1,) for label in labels]
    values = sorted(label[0] for label in labels)
    bounds = [values[len(values) * part // _BINS] for part in range(1, _BINS)]
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

    The groups are visited in the order of a checksum of their smallest key, those with rare strata first. A group is
    held out if that brings the number of images of its strata closer to `fraction`, and leaves each stratum a group for
    training. So the same files give the same split on every machine, and new files move few old ones.

    Args:
        keys: name of each image, as `keys_of` returns them.
        groups: group of each image; no group is divided.
        strata: strata of each image.
        fraction: fraction of the images of each stratum, of which at least one is held out if it has two groups.
        seed: seed of the order.
        purpose: changes the order, so that test and validation images are drawn independently.

    >>> held_out(["a", "b", "c", "d"], [0, 1, 2, 3], [(0,), (0,), (1,), (1,)], 0.5, seed=0)
    [1, 2]
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    counts = {group: Counter(s for index in own for s in strata[index]) for group, own in members.items()}
    images: Counter[int] = Counter()
    train: Counter[int] = Counter()  # groups of each stratum that are left for training
    for count in counts.values():
        images.update(count)
        train.update(count.keys())
    target = {s: max(int(fraction * images[s] + 0.5), 1) if train[s] > 1 else 0 for s in images}
    missing = dict(target)
    of_stratum = dict(train)
    chosen: set[int] = set()

    def take(group: int) -> None:
        chosen.add(group)
        for stratum, number in counts[group].items():
            missing[stratum] -= number
            train[stratum] -= 1

    def rank(group: int) -> tuple[int, bytes]:
        first = min(keys[index] for index in members[group])
        return min(of_stratum[s] for s in counts[group]), hashlib.sha256(f"{purpose}{seed}/{first}".encode()).digest()

    order = sorted(members, key=rank)
    for group in order:
        count = counts[group]
        gain = sum(abs(missing[s]) - abs(missing[s] - number) for s, number in count.items())
        if gain > 0 and all(train[s] > 1 for s in count):
            take(group)
    for stratum, wanted in target.items():
        if wanted and missing[stratum] == wanted:
            fitting = [
                g for g in order if g not in chosen and counts[g][stratum] and all(train[s] > 1 for s in counts[g])
            ]
            if fitting:
                take(min(fitting, key=lambda group: len(members[group])))
    return sorted(index for group in chosen for index in members[group])
