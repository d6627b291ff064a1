"""The form "routes": one file with a dense network for each route, whose images run through it in ONNX Runtime."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.cli import run
from gatewise.errors import InvalidValueError, TrainingError
from gatewise.exporting import details_of
from gatewise.exporting.formats.onnx import Onnx
from gatewise.exporting.forms import chosen_form
from gatewise.gaternet.given_routes import routes_from_gates
from gatewise.inference.routed import RoutedNet
from support.command_runs import gated  # noqa: F401 - a fixture

IMAGES = torch.randn(9, 3, 12, 12, generator=torch.Generator().manual_seed(0))
PATTERNS = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0]]).bool()
TAKEN = (3, 6)  # routes 0 and 1 are taken by so many of IMAGES, route 2 by none


class ByBrightness(nn.Module):
    """Opens the first four of eight gates for bright images, and the last four for dark ones."""

    def forward(self, x: Tensor) -> Tensor:
        sign = x.mean((1, 2, 3)).sign().unsqueeze(1)
        return torch.cat([sign.expand(-1, 4), -sign.expand(-1, 4)], 1)


def gater_net(last: list[nn.Module] | None = None) -> gw.GaterNet:
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)] if last is None else last
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), *pool
    )
    backbone(IMAGES)  # running statistics that are not 0 and 1
    return gw.GaterNet(backbone, gater=ByBrightness(), image_size=(12, 12)).eval()


@pytest.fixture(scope="module")
def net() -> gw.GaterNet:
    return gater_net()


@pytest.fixture(scope="module")
def file(net: gw.GaterNet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("routes") / "net.onnx"
    return out, gw.export(net, out, example=IMAGES, routes=PATTERNS)


def in_runtime(file: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return dict(zip(names, map(torch.from_numpy, found), strict=True))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_file_equals_network_with_gates_of_chosen_routes(
    net: gw.GaterNet, file: tuple[Path, dict[str, Any]], count: int
) -> None:
    found = in_runtime(file[0], IMAGES[:count])
    assert list(found) == ["logits", "route", "gates"]
    bright = IMAGES[:count].mean((1, 2, 3)) > 0
    assert torch.equal(found["route"], torch.where(bright, 0, 1))
    assert torch.equal(found["gates"], PATTERNS[found["route"]].float())
    torch.testing.assert_close(found["logits"], net(IMAGES[:count]).detach(), rtol=1e-4, atol=1e-5)


def test_report_says_how_many_images_took_each_route(file: tuple[Path, dict[str, Any]]) -> None:
    out, found = file
    assert (found["form"], found["routes"], found["images"]) == ("routes", 3, 9)
    assert found["images_of_routes"] == [*TAKEN, 0]
    assert found["difference"] < 1e-5
    assert details_of(out)["routes"] == 3


def test_routes_have_their_own_dense_weights_without_norms(file: tuple[Path, dict[str, Any]]) -> None:
    graph = onnx.load(file[0]).graph
    bodies = [node.attribute for node in graph.node if node.op_type == "If"]
    then = [next(each.g for each in body if each.name == "then_branch") for body in bodies]
    assert len(then) == 3
    for body in then:
        weights = {each.name: tuple(each.dims) for each in body.initializer}
        convolutions = [node for node in body.node if node.op_type == "Conv"]
        assert [weights[node.input[1]] for node in convolutions] == [(4, 3, 3, 3), (4, 4, 3, 3)]
        assert "BatchNormalization" not in {node.op_type for node in body.node}
    assert not [node for node in graph.node if node.op_type == "Conv"]


@pytest.mark.extended
def test_maps_of_the_images_size_are_written_row_by_row(tmp_path: Path) -> None:
    net = gater_net([nn.Softmax(1), nn.Conv2d(4, 2, 1)])
    out = tmp_path / "net.onnx"
    gw.export(net, out, example=IMAGES, form="routes", routes=PATTERNS, any_size=True)
    larger = torch.cat([IMAGES, IMAGES.flip(2)], 3)[1:]
    torch.testing.assert_close(in_runtime(out, larger)["logits"], net(larger).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.extended
def test_maps_of_another_free_size_are_refused(tmp_path: Path) -> None:
    net = gater_net([nn.ReLU(), nn.MaxPool2d(2)])
    with pytest.raises(InvalidValueError, match=r"axis 2 of the output has another. Export for a fixed size"):
        gw.export(net, tmp_path / "net.onnx", example=IMAGES, form="routes", routes=PATTERNS, any_size=True)


@pytest.mark.extended
def test_split_files_are_the_parts(net: gw.GaterNet, tmp_path: Path) -> None:
    options: dict[str, Any] = {"example": IMAGES, "form": "routes", "routes": PATTERNS[:2], "split": True}
    found = gw.export(net, tmp_path / "net.onnx", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net.chooser.onnx",
        "net.route0.onnx",
        "net.route1.onnx",
    ]
    assert found["files"] == [str(tmp_path / f"net.{part}.onnx") for part in ("chooser", "route0", "route1")]
    chosen = in_runtime(tmp_path / "net.chooser.onnx", IMAGES)
    assert list(chosen) == ["route", "gates"]
    for number in (0, 1):
        own = IMAGES[chosen["route"] == number]
        logits = in_runtime(tmp_path / f"net.route{number}.onnx", own)["logits"]
        torch.testing.assert_close(logits, net(own).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.extended
def test_each_route_is_quantised_over_images_that_take_it(
    net: gw.GaterNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    quantise = Onnx.quantise

    def note(self: Onnx, file: Path, batches: Any) -> None:
        seen.append(torch.cat(list(batches)))
        quantise(self, file, [seen[-1]])

    monkeypatch.setattr(Onnx, "quantise", note)
    found = gw.export(net, tmp_path / "net.onnx", example=IMAGES, form="routes", routes=PATTERNS, int8=IMAGES)
    assert [len(images) for images in seen] == [*TAKEN, 9]  # all images for a route that none takes
    assert (seen[0].mean((1, 2, 3)) > 0).all()
    assert 0 < found["int8_difference"] < 0.2
    assert found["other_gates"] == 0
    assert "DequantizeLinear" not in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}


@pytest.mark.extended
def test_route_that_differs_is_found_though_no_image_takes_it(
    net: gw.GaterNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RoutedNet(net, PATTERNS)
    made.networks[2][0].weight.data += 1  # type: ignore[index]  # pyright: ignore
    monkeypatch.setattr("gatewise.exporting.writer.RoutedNet", lambda *_: made)
    with pytest.raises(TrainingError, match="was not written"):
        gw.export(net, tmp_path / "net.onnx", example=IMAGES, form="routes", routes=PATTERNS)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routes": None}, "no routes. Train it with gaternet:routes=K"),
        ({"routes": PATTERNS[:, :5]}, r"shape \(K, 8\), a row for each route, got \(3, 5\)"),
        ({"to": "torch"}, "form routes needs format onnx, got torch"),
        ({"form": "masked"}, "routes is for the form routes, got form masked"),
        ({"form": "masked", "routes": None, "split": True}, "split is for the form routes, got form masked"),
    ],
)
def test_what_has_no_form_routes(net: gw.GaterNet, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"example": IMAGES, "form": "routes", "routes": PATTERNS, **options}
    with pytest.raises(InvalidValueError, match=message):
        gw.export(net, tmp_path / ("net.pt2" if "to" in options else "net.onnx"), **arguments)


# In torch


def test_routed_net_equals_network(net: gw.GaterNet) -> None:
    routed = RoutedNet(net, PATTERNS)
    output, gates = routed.forward_with_gates(IMAGES)
    torch.testing.assert_close(output, net(IMAGES).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(gates, PATTERNS[(IMAGES.mean((1, 2, 3)) < 0).long()].float())
    given = PATTERNS[[2, 0, 1, 2, 0, 1, 2, 0, 1]].float()
    torch.testing.assert_close(routed.forward_with_gates(IMAGES, given)[0], net(IMAGES, given).detach())


def test_routed_net_refuses_gates_of_no_route(net: gw.GaterNet) -> None:
    with pytest.raises(InvalidValueError, match="those of no route"):
        RoutedNet(net, PATTERNS).forward_with_gates(IMAGES, torch.ones(9, 8))


# Networks that learned routes


@pytest.fixture(scope="module")
def learned() -> gw.GaterNet:
    """Return a network with two routes, whose batch norms differ from each other and from the backbone's."""
    torch.manual_seed(0)
    net = gw.GaterNet(gater_net().backbone, gater=OfBrightness, routes=2, image_size=(12, 12))
    net(IMAGES)
    for route in (0, 1):
        for name, tensor in net.selection.norms.tensors(route).items():
            if not name.endswith("num_batches_tracked"):
                tensor.data += 0.3 + torch.rand_like(tensor)
    return net.eval()


class OfBrightness(nn.Module):
    """Chooses route 0 for bright images and route 1 for dark ones."""

    def __init__(self, logits: int) -> None:
        super().__init__()
        assert logits == 2

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


@pytest.mark.extended
def test_learned_routes_keep_their_own_norms(learned: gw.GaterNet, tmp_path: Path) -> None:
    found = gw.export(learned, tmp_path / "net.onnx", example=IMAGES)
    assert found["form"] == "routes"
    assert found["images_of_routes"] == [*TAKEN]
    outputs = in_runtime(tmp_path / "net.onnx", IMAGES)
    torch.testing.assert_close(outputs["logits"], learned(IMAGES).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs["route"], learned.route_of(IMAGES))


@pytest.mark.parametrize("mode", ["mask", "skip", "bucket", "auto"])
def test_learned_routes_run_in_torch_with_their_own_norms(learned: gw.GaterNet, mode: str) -> None:
    fast = gw.skip_closed_filters(learned, mode)
    assert isinstance(fast, RoutedNet) == (mode != "mask")
    output, gates = fast.forward_with_gates(IMAGES)
    expected, own = learned.forward_with_gates(IMAGES)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(gates, own)
    if mode == "skip":
        assert "BatchNorm2d" not in {type(module).__name__ for module in _called(fast)}


def test_net_that_runs_route_by_route_takes_forced_gates(learned: gw.GaterNet) -> None:
    """`forward` had no parameter `gates`."""
    assert learned.routes is not None
    fast = gw.skip_closed_filters(learned)
    gates = learned.routes.float()[torch.arange(len(IMAGES)) % len(learned.routes)]
    torch.testing.assert_close(fast(IMAGES, gates=gates), learned(IMAGES, gates=gates), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidValueError, match=r"gates must have shape \(9, 8\), a row for each image, got \(1, 8\)"):
        fast(IMAGES, gates=gates[:1])


@pytest.mark.parametrize(
    "trace",
    [
        lambda net: torch.export.export(net, (IMAGES,)),
        lambda net: torch.jit.trace(net, (IMAGES,)),
        torch.jit.script,
        torch.fx.symbolic_trace,
        lambda net: torch.vmap(net)(IMAGES.unsqueeze(1)),
    ],
    ids=["export", "jit.trace", "jit.script", "fx", "vmap"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_net_that_runs_route_by_route_is_not_traced(learned: gw.GaterNet, trace: Callable[[nn.Module], Any]) -> None:
    """torch.jit.trace recorded the routes of the example; torch.export printed its whole graph."""
    with pytest.raises(InvalidValueError, match="a net that runs route by route reads the route of each image"):
        trace(gw.skip_closed_filters(learned))


def _called(net: nn.Module) -> list[nn.Module]:
    """Return the layers that change their input when the net runs."""
    found: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(
            lambda layer, given, output: None if output is given[0] else found.append(layer)  # type: ignore[func-returns-value]
        )
        for module in net.modules()
    ]
    net(IMAGES)
    for hook in hooks:
        hook.remove()
    return found


def test_learned_routes_have_no_form_that_picks_filters(learned: gw.GaterNet, tmp_path: Path) -> None:
    for form in ("masked", "skip", "compact"):
        with pytest.raises(InvalidValueError, match=r"GaterNet has routes, so its file has only .* Choose form routes"):
            gw.export(learned, tmp_path / "net.onnx", example=IMAGES, form=form)
    with pytest.raises(InvalidValueError, match=r"has routes\. Compact one of them"):
        gw.compact(learned, [IMAGES])
    single = gw.compact(learned.of_route(1), [IMAGES])
    torch.testing.assert_close(single(IMAGES), learned.of_route(1)(IMAGES).detach(), rtol=1e-4, atol=1e-5)


def test_form_that_is_not_given_follows_from_the_network(learned: gw.GaterNet, net: gw.GaterNet) -> None:
    none = {"routes": False, "split": False}
    assert chosen_form("net", learned, None, of_routes=none) == "routes"
    assert chosen_form("net", net, None, of_routes=none) == "masked"
    assert chosen_form("net", net.backbone, None, of_routes=none) == "masked"
    assert chosen_form("net", net, None, of_routes={**none, "routes": True}) == "routes"
    assert chosen_form("net", learned.of_route(0), "masked", of_routes=none) == "masked", (
        "one route is a pruned network"
    )


def test_routes_are_the_gates_that_most_images_of_a_cluster_open() -> None:
    net = gater_net()
    bright = IMAGES + torch.linspace(2, -2, 9).view(-1, 1, 1, 1)
    found = routes_from_gates(net, bright.split(4), 2)
    assert sorted(found.int().tolist()) == sorted(PATTERNS[:2].int().tolist())
    with pytest.raises(InvalidValueError, match="10 routes need at least as many images, got 9"):
        routes_from_gates(net, [IMAGES], 10)


@pytest.mark.extended
def test_run_without_routes_is_given_some(gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.onnx"
    arguments = ["export", str(gated), "--form", "routes", "--out", str(out)]
    assert run([*arguments, "--routes", "2", "--images", "8"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"accuracy: [\d.]+ %, with routes [\d.]+ %", output, re.IGNORECASE)
    assert re.search(r"images of each route: \d, \d\n", output)
    assert details_of(out)["routes"] == 2
    assert run(arguments) == 2
    assert "has no routes" in capsys.readouterr().err
    assert run([*arguments[:3], "masked", *arguments[4:], "--routes", "2"]) == 2
    assert "for the form routes" in capsys.readouterr().err


@pytest.mark.slow
def test_equal_routes_are_written_once(
    gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(net: gw.GaterNet, batches: Any, count: int) -> Tensor:
        patterns = torch.ones(count, net.gate_count, dtype=torch.bool)
        patterns[0, :2] = False
        return patterns

    monkeypatch.setattr("gatewise.exporting.writer.routes_from_gates", found)
    out = tmp_path / "net.onnx"
    assert run(["export", str(gated), "--form", "routes", "--routes", "3", "--images", "8", "--out", str(out)]) == 0
    assert "3 clusters of images form 2 different routes\n" in capsys.readouterr().err
    assert details_of(out)["routes"] == 2
