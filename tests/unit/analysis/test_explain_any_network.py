"""`gw.explain` writes the page of a network that was trained elsewhere, from any loader."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from playwright.sync_api import Browser
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gatewise as gw
from gatewise.errors import InvalidTypeError, InvalidValueError, StorageError
from support.browser import (
    CHROMIUM,
    browser,  # noqa: F401 - a fixture
    open_file,
)
from support.given_networks import gater_network, plain_network

IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4


def network() -> nn.Sequential:
    return plain_network(4, normalised=True)


def gated(gate: str = "se@inner") -> nn.Sequential:
    net = network()
    gw.insert_gates(net, gate, example=IMAGES[:2])
    for parameter in (p for g in gw.gates_in(net).values() for p in g.parameters()):
        nn.init.normal_(parameter, std=0.7)
    return net


def gater_net() -> gw.GaterNet:
    return gater_network(16, 4, normalised=True)


def batches() -> list[Any]:
    return [(IMAGES[:10], LABELS[:10]), (IMAGES[10:], LABELS[10:])]


def heads(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())


def state_of(net: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[bool]]:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return state, [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_page_of_images_that_give_gates_no_value(value: float, tmp_path: Path) -> None:
    """The page of black images, or of a network that has diverged, ended in an error of torch after the analysis."""
    page = gw.explain(gated("gct"), [(torch.full_like(IMAGES, value), LABELS)], tmp_path / "page.html")
    assert "classes_by_channel" not in page.read_text()


@pytest.mark.situation("networks without a run: page of inserted gates")
def test_page_of_inserted_gates_says_what_is_missing(tmp_path: Path) -> None:
    net = gated().train()
    before = state_of(net)
    page = gw.explain(net, batches(), tmp_path / "page.html", classes=["ant", "bee", "cat", "dog"])
    assert page == tmp_path / "page.html"
    assert heads(page) == ["Network", "Factors of gates by depth", "Gates near the identity", "How this was made"]
    text = page.read_text()
    assert "given without a run, so the page has no training curve, no recipe" in text
    assert "The loader has no labels" not in text
    accuracy = 100 * float((net.eval()(IMAGES).argmax(1) == LABELS).float().mean())
    assert f">{accuracy:.2f}</td>" in text
    assert f">{sum(p.numel() for p in net.parameters()):,}</td>" in text
    assert "bee" in text
    net.train()
    after = state_of(net)
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


@pytest.mark.situation("loaders of the user's own, without labels")
@pytest.mark.parametrize(
    "loader",
    [
        pytest.param(IMAGES, id="one tensor"),
        pytest.param([IMAGES[:10], IMAGES[10:]], id="images"),
        pytest.param(DataLoader(TensorDataset(IMAGES), batch_size=10), id="DataLoader of tuples of one"),
        pytest.param([{"pixel_values": IMAGES}], id="dicts of images"),
        pytest.param([(IMAGES, torch.rand(24, 4))], id="labels that are no classes"),
    ],
)
def test_without_labels_accuracies_are_omitted(loader: Any, tmp_path: Path) -> None:
    text = gw.explain(gated(), loader, tmp_path / "page.html").read_text()
    assert "Accuracies and statistics by class are omitted." in text
    assert "classified correctly" not in text
    assert "24 images" in text


@pytest.mark.situation("loaders of the user's own, with labels")
@pytest.mark.parametrize(
    "loader",
    [
        pytest.param(batches(), id="tuples"),
        pytest.param(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5, shuffle=True), id="shuffled DataLoader"),
        pytest.param(iter(batches()), id="an iterator that can be read once"),
        pytest.param([{"image": IMAGES, "label": LABELS}], id="dicts"),
        pytest.param([{"pixel_values": IMAGES, "depth": IMAGES, "labels": LABELS}], id="dicts with more"),
        pytest.param([[IMAGES, LABELS, ["a.png"] * 24]], id="lists with names"),
    ],
)
def test_labels_of_any_loader_give_the_same_accuracy(loader: Any, tmp_path: Path) -> None:
    net = gated()
    accuracy = 100 * float((net.eval()(IMAGES).argmax(1) == LABELS).float().mean())
    text = gw.explain(net, loader, tmp_path / "page.html").read_text()
    assert "images classified correctly (%)" in text
    assert f">{accuracy:.2f}</td>" in text
    assert "class 3" in text


@pytest.mark.situation("networks without a run: page of a GaterNet")
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_page_of_gater_net_opens_in_a_browser_with_thumbnails(browser: Browser, tmp_path: Path) -> None:
    page = gw.explain(gater_net(), batches(), tmp_path / "page.html", figures_in=tmp_path / "figures")
    assert heads(page) == ["Network", "Which filters the gater opens", "How this was made"]
    opened = open_file(browser, page)
    assert opened.page.locator("figure svg").count() == len([*(tmp_path / "figures").glob("*.svg")]) >= 4
    assert opened.page.locator(".thumbnail").count() == 1
    assert (opened.requests, opened.complaints) == ([page.as_uri()], [])
    opened.page.context.close()


def test_only_the_first_images_are_read(tmp_path: Path) -> None:
    def endless() -> Any:
        while True:
            yield IMAGES, LABELS

    page = gw.explain(gated(), endless(), tmp_path / "page.html", images=30)
    assert "gates were shown 30 images" in page.read_text()


@pytest.mark.situation("networks without a run: page of compacted, compiled and data-parallel networks")
def test_compacted_and_wrapped_networks_are_explained(tmp_path: Path) -> None:
    net = gater_net()
    small = gw.compact(net, batches())
    assert "Which filters the gater opens" in heads(gw.explain(small, batches(), tmp_path / "a.html"))
    compiled = torch.compile(gated(), backend="eager")
    assert "Factors of gates by depth" in heads(gw.explain(compiled, batches(), tmp_path / "b.html"))
    parallel = nn.DataParallel(gated())
    assert "Factors of gates by depth" in heads(gw.explain(parallel, batches(), tmp_path / "c.html"))


@pytest.mark.situation("networks without a run: page of a segmenter whose output is a dict")
def test_output_in_a_dict_and_masks_are_understood(tmp_path: Path) -> None:
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    gw.insert_gates(net.backbone, "gct", include=["0"])
    images, masks = torch.randn(4, 3, 32, 32), torch.randint(0, 3, (4, 1, 32, 32))
    masks[0, 0, :4] = -1  # pixels that do not count
    text = gw.explain(net, [(images, masks)], tmp_path / "page.html").read_text()
    assert "pixels classified correctly (%)" in text
    assert "Predicted masks" in text


@pytest.mark.situation("networks without a run: page of a network for signals")
def test_signals_have_no_pictures(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    signals, labels = torch.randn(8, 1, 32), torch.arange(8)
    gw.insert_gates(net, "nl", place="before_conv", exclude=["0"])
    assert "Values added by gates by depth" in heads(gw.explain(net, [(signals, labels)], tmp_path / "a.html"))
    gated = gw.GaterNet(net, example=signals[:2], gater=lambda gates: nn.Sequential(nn.Flatten(), nn.Linear(32, gates)))
    assert "Which filters the gater opens" in heads(gw.explain(gated, [(signals, labels)], tmp_path / "b.html"))


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (7, InvalidTypeError, "explain expects a loader of batches of images .* got 7"),
        ({"image": IMAGES}, InvalidTypeError, "explain expects a loader"),
        (["a.png"], InvalidTypeError, "with images in floating point as the network takes them, got str"),
        ([(255 * IMAGES).to(torch.uint8)], InvalidTypeError, "in floating point .* got a tensor .* of uint8"),
        ([([IMAGES[0]], [{}])], InvalidTypeError, "got a tuple of a list of a tensor"),
        (TensorDataset(IMAGES, LABELS), InvalidValueError, "single images: torch.utils.data.DataLoader"),
        ([(IMAGES[0], 3)], InvalidValueError, "Wrap a data set of single images"),
        ([{"left": IMAGES, "right": IMAGES}], InvalidValueError, "which entry of a batch has the images: left, right"),
        ([(IMAGES, LABELS[:3])], InvalidValueError, "one label for each image of a batch"),
        ([], InvalidValueError, "the loader has no images; an iterator may be used up"),
        ([(IMAGES, LABELS + 9)], InvalidValueError, "labels must be between 0 and 3 for 4 outputs, got 9 to 12"),
    ],
)
def test_loaders_that_do_not_fit(loader: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        gw.explain(gated(), loader, tmp_path / "page.html")
    assert not [*tmp_path.iterdir()]


def test_networks_that_do_not_fit(tmp_path: Path) -> None:
    fast = gw.skip_closed_filters(gater_net(), "mask")
    with pytest.raises(InvalidTypeError, match=r"got the skipping network.*give the GaterNet"):
        gw.explain(fast, batches(), tmp_path / "page.html")
    with pytest.raises(InvalidTypeError, match="explain"):
        gw.explain("resnet18", batches(), tmp_path / "page.html")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="has 4 outputs and 1 classes are given"):
        gw.explain(gated(), batches(), tmp_path / "page.html", classes=["one"])
    with pytest.raises(StorageError, match="is a folder; give the name of a file"):
        gw.explain(gated(), batches(), tmp_path)
    assert "This network has no gates" in gw.explain(network(), batches(), tmp_path / "page.html").read_text()


def test_network_that_cannot_be_copied_is_explained(tmp_path: Path) -> None:
    net = gated()
    net[0].kept = net[0].weight * 2  # no leaf, so deepcopy raises
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    assert "Factors of gates by depth" in heads(gw.explain(net, batches(), tmp_path / "page.html"))
