"""Streamed batches equal those in memory, with any number of workers; augmentation follows its words."""

import dataclasses
import pickle
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from gatewise.data import Augmentation, Batches, Dataset, Images, StreamedBatches, load_dataset, make_batches
from gatewise.data.augmentation import parse_augmentation
from gatewise.data.decode import picture_of
from gatewise.errors import DataError, InvalidTypeError, InvalidValueError
from support.class_folders import (
    KINDS,
    ONE,
    ZERO,
    folder,  # noqa: F401 - a fixture
    images,
)
from support.picture_folders import by_class

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors


def epoch(batches: Batches, augmentation: Augmentation, number: int = 1, start: int = 0) -> Sequence[Tensor]:
    pairs = list(batches.training(number, seed=3, augmentation=augmentation, start=start))
    return [tensor for pair in pairs for tensor in pair]


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("augmentation", KINDS[:2], ids=["plain", "shift and flip"])
def test_streamed_batches_equal_those_in_memory_bitwise(folder: Path, augmentation: Augmentation) -> None:
    memory, streamed = (load_dataset(folder, loading=loading).train for loading in ("memory", "stream"))
    options = (4, torch.tensor([100.0, 120, 140]), torch.tensor([50.0, 60, 70]))
    first, second = Batches(memory, *options), StreamedBatches(streamed, *options)
    assert equal(epoch(first, augmentation), epoch(second, augmentation))
    for (a, _), (b, _) in zip(first.evaluation(), second.evaluation(), strict=True):
        assert torch.equal(a, b)
        assert b.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augmentation", KINDS, ids=str)
def test_number_of_workers_does_not_matter(folder: Path, augmentation: Augmentation) -> None:
    split = load_dataset(folder, loading="stream").train
    alone, three = (StreamedBatches(split, 4, ZERO, ONE, workers=workers) for workers in (0, 3))
    assert equal(epoch(alone, augmentation), epoch(three, augmentation))


@pytest.mark.parametrize("augmentation", KINDS, ids=str)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_epoch_can_start_at_any_batch(augmentation: Augmentation, start: int) -> None:
    batches = make_batches(images(), 4, ZERO, ONE, augmentation=augmentation)
    whole = epoch(batches, augmentation)
    assert len(whole) == 6
    assert equal(epoch(batches, augmentation, start=start), whole[2 * start :])


@pytest.mark.parametrize("augmentation", KINDS[2:], ids=str)
def test_augmentation_depends_only_on_seed_and_epoch(augmentation: Augmentation) -> None:
    batches = make_batches(images(), 4, ZERO, ONE, augmentation=augmentation)
    first = epoch(batches, augmentation)
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    assert equal(epoch(batches, augmentation), first)
    assert not equal(epoch(batches, augmentation, number=2), first)


def test_one_image_is_cropped_differently_each_time() -> None:
    same = Images(images(1).pixels.expand(8, -1, -1, -1).contiguous(), torch.zeros(8).long())
    augmentation = Augmentation(crop=True)
    batches = make_batches(same, 4, ZERO, ONE, augmentation=augmentation)
    shown = [epoch(batches, augmentation, number=number)[index] for number in (1, 2) for index in (0, 2)]
    assert len(torch.cat(shown).unique(dim=0)) == 16


def test_evaluation_shows_streamed_images_unchanged(folder: Path) -> None:
    split = load_dataset(folder, loading="stream").validation
    shown = torch.cat([batch for batch, _ in StreamedBatches(split, 5, ZERO, ONE, workers=2).evaluation()])
    assert torch.equal(shown, images().pixels.float())


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_one_line_with_its_name_when_read(tmp_path: Path, workers: int) -> None:
    for split in ("train", "val"):
        for index in range(4):
            path = tmp_path / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture_of(images()[index]).save(path)
    broken = tmp_path / "train/b/3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    split = load_dataset(tmp_path, loading="stream").train
    with pytest.raises(DataError) as caught:
        epoch(StreamedBatches(split, 2, ZERO, ONE, workers=workers), Augmentation())
    assert str(caught.value).startswith(f"{broken}: truncated or unreadable image")
    assert str(caught.value).endswith(
        " Remove it, or add --on-broken skip; gatewise check finds all images that cannot be read."
    )
    assert "\n" not in str(caught.value)


def test_streamed_test_images_are_read_before_the_training(tmp_path: Path) -> None:
    by_class(tmp_path, {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"})
    (note,) = (note for note in load_dataset(tmp_path, loading="stream").notes if "while the network trains" in note)
    assert note.startswith("train and validation images are read while the network trains:")
    broken = tmp_path / "test/b/3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"test/b/3\.png: truncated .* Remove it, or add --on-broken skip\.$"):
        load_dataset(tmp_path, loading="stream")


def test_in_memory_batches_reject_streamed_images(folder: Path) -> None:
    with pytest.raises(InvalidTypeError, match="Use StreamedBatches"):
        Batches(load_dataset(folder, loading="stream").train, 4, ZERO, ONE)


@pytest.mark.parametrize("processes", [2, 3])
def test_process_shares_make_up_each_streamed_batch(folder: Path, processes: int) -> None:
    split = load_dataset(folder, loading="stream").train
    shares = [StreamedBatches(split, 6, ZERO, ONE, share=(rank, processes)) for rank in range(processes)]
    whole = epoch(StreamedBatches(split, 6, ZERO, ONE), KINDS[1])
    parts = [epoch(share, KINDS[1]) for share in shares]
    for index, expected in enumerate(whole):
        together = torch.stack([part[index] for part in parts], 1).flatten(0, 1)
        assert torch.equal(together, expected)


# Words of an augmentation


def test_crop_is_part_of_image() -> None:
    rows = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 64, 1).expand(8, 3, 64, 64).clone()
    augmentation = Augmentation(crop=True)
    batches = make_batches(Images(rows, torch.zeros(8).long()), 8, ZERO, ONE, augmentation=augmentation)
    shown, _ = next(batches.training(0, seed=0, augmentation=augmentation))
    assert shown.shape == (8, 3, 64, 64)
    span = shown.amax((1, 2, 3)) - shown.amin((1, 2, 3))
    assert (span < 63).any()
    assert (shown[:, :, 0] <= shown[:, :, -1]).all()
    assert_close(shown[..., :1].expand_as(shown), shown, atol=1.0, rtol=0)


def test_policy_changes_picture_and_none_does_not() -> None:
    plain, changed = (
        epoch(make_batches(images(), 12, ZERO, ONE, augmentation=a), a)[0]
        for a in (Augmentation(), Augmentation(policy="rand-m9-mstd0.5"))
    )
    assert plain.shape == changed.shape
    assert ((plain != changed).flatten(1).any(1)).sum() > 6


def test_grey_images_stay_grey_under_policy() -> None:
    augmentation = Augmentation(policy="rand-m9-mstd0.5")
    batches = make_batches(images(channels=1), 4, ZERO[:1], ONE[:1], augmentation=augmentation)
    assert epoch(batches, augmentation)[0].shape == (4, 1, 16, 16)


def test_simple_sources_stay_in_memory() -> None:
    for augmentation, kind in zip(KINDS, (Batches, Batches, *[StreamedBatches] * 3), strict=True):
        assert type(make_batches(images(), 4, ZERO, ONE, augmentation=augmentation)) is kind


@pytest.mark.parametrize(
    ("text", "memory", "stream"),
    [
        ("auto", Augmentation(padding=2, flip=True), Augmentation(crop=True, flip=True)),
        ("none", Augmentation(), Augmentation()),
        ("shift", Augmentation(padding=2), Augmentation(padding=2)),
        ("flip+crop", Augmentation(crop=True, flip=True), Augmentation(crop=True, flip=True)),
        (
            "rand-m9",
            Augmentation(padding=2, flip=True, policy="rand-m9"),
            Augmentation(crop=True, flip=True, policy="rand-m9"),
        ),
        ("none+augmix-m3", Augmentation(policy="augmix-m3"), Augmentation(policy="augmix-m3")),
    ],
)
def test_words_of_augmentation(folder: Path, text: str, memory: Augmentation, stream: Augmentation) -> None:
    assert load_dataset(folder, loading="memory").augmentation(text) == memory
    assert load_dataset(folder, loading="stream").augmentation(text) == stream


def test_asymmetric_images_are_not_mirrored_by_default() -> None:
    digits = Dataset("", ("a", "b"), images(), images(), padding=1, flip=False)
    assert digits.augmentation("auto") == Augmentation(padding=1)
    assert digits.augmentation("shift+flip") == Augmentation(padding=1, flip=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shifts", r"unknown augmentation 'shifts'.* Did you mean 'shift'\?"),
        ("", "unknown augmentation ''"),
        ("auto+flip", "cannot combine the options of augmentation 'auto.flip'"),
        ("none+shift", "cannot combine the options"),
        ("shift+shift", "cannot combine the options"),
        ("rand-m9+augmix-m3", "at most one policy"),
        ("rand-q", "cannot parse 'q' in augmentation 'rand-q'"),
        ("crop+rand-m9-mx", "cannot parse 'mx'"),
    ],
)
def test_unknown_words_rejected(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse_augmentation(text)


@pytest.mark.parametrize("policy", ["rand-z9", "augmix-z3", "originals"])
def test_policy_unreadable_by_timm_rejected(policy: str) -> None:
    with pytest.raises(InvalidValueError, match=f"timm cannot parse the policy '{policy}'"):
        Augmentation(policy=policy).of_picture((8, 8))


def test_large_images_stream_at_their_own_size(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(4):
            path = tmp_path / split / "ab"[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + index, 30), (60 * index, 0, 0)).save(path)
    dataset = load_dataset(tmp_path, image_size=24, loading="stream")
    augmentation = dataset.augmentation("auto")
    batches = make_batches(dataset.train, 4, ZERO, ONE, augmentation=augmentation)
    shown, labels = next(batches.training(0, seed=0, augmentation=augmentation))
    assert shown.shape == (4, 3, 24, 24)
    assert sorted(labels.tolist()) == [0, 0, 1, 1]


def test_augmentation_can_be_sent_to_workers() -> None:
    change = dataclasses.replace(Augmentation(), crop=True, policy="rand-m9").of_picture((8, 8))
    picture = Image.new("RGB", (16, 16), (9, 8, 7))
    assert pickle.loads(pickle.dumps(change))(picture).size == (8, 8)
