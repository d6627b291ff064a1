"""Exported files, reopened in ONNX Runtime and torch, equal the network, on other routes and sizes too."""

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import gatewise as gw
from gatewise import GatewiseError
from gatewise.cli import run
from gatewise.errors import TrainingError
from gatewise.exporting import agreement, details_of, export_run, opened, register_format
from gatewise.exporting.agreement import check_agreement
from gatewise.exporting.formats.onnx import Onnx
from gatewise.exporting.formats.torch_export import TorchExport
from gatewise.exporting.forms import WithGates
from gatewise.exporting.int8 import to_int8
from gatewise.exporting.program import exported_program
from gatewise.inference import ConditionalNet
from gatewise.models.serialization import load_model
from gatewise.training.runs import open_runs
from support.command_runs import gated, images_of, plain  # noqa: F401 - fixtures
from support.random_networks import BLOCKS, drawn_networks, gater_net, images
from support.releases import release
from support.scenes import done, folder, recipe  # noqa: F401 - fixtures


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# The conditional network


@pytest.mark.extended
@given(drawn_networks)
@settings(max_examples=15)
def test_conditional_network_equals_masked_network(drawn: tuple[list[str], int, int, str]) -> None:
    blocks, width, seed, sites = drawn
    assume(sites == "residual" or set(blocks) != {"normalised_over_channels"})
    net, x = gater_net(blocks, width, seed=seed, sites=sites), images(4)
    with torch.no_grad():
        expected, gates = net.forward_with_gates(x)
        output, own = ConditionalNet(net)(x)
    assert torch.equal(own, gates)
    close(output, expected)


@pytest.mark.parametrize("state", ["0", "1"])
@pytest.mark.parametrize("block", sorted(BLOCKS.keys() - {"normalised_over_channels"}))
def test_all_closed_and_all_open(block: str, state: str) -> None:
    net = gater_net([block, block], letters=state)
    with torch.no_grad():
        close(ConditionalNet(net)(images(2))[0], net(images(2)))


def macs(network: Any, x: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2


def test_conditional_network_computes_only_open_filters() -> None:
    net = gater_net(["basic"], 8, states="11010000")
    assert macs(net, images(1)) - macs(ConditionalNet(net), images(1)) == 5 * 64 * 9 * (8 + 8)
    free = gater_net(["basic"], 8, letters="?")
    gates = free.forward_with_gates(images(3))[1]
    union = int(gates.amax(0).sum())
    assert union > int(gates.sum(1).max())
    assert macs(free, images(3)) - macs(ConditionalNet(free), images(3)) == 3 * (8 - union) * 64 * 9 * (8 + 8)


def test_local_gating_has_no_conditional_form() -> None:
    with pytest.raises(GatewiseError, match=r"during the forward.*masked or compact"):
        ConditionalNet(gater_net(["basic"], gater="local"))


# Files


PICKS = release(torch.__version__) > (2, 11)
of_torch_that_picks = pytest.mark.skipif(
    not PICKS, reason="torch 2.11 cannot export filters that are picked on the way"
)
ONNX = ["masked", "compact", pytest.param("skip", marks=of_torch_that_picks)]
FORMS = [*ONNX, pytest.param("torch", marks=of_torch_that_picks)]


@pytest.fixture(scope="module")
def files(gated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the gated run exported in each form, and as torch's archive."""
    made_in = tmp_path_factory.mktemp("files")
    made = {form: made_in / f"{form}.onnx" for form in ("masked", "compact", "skip")}
    for form, file in made.items():
        picked = form == "skip" and not PICKS
        assert run(["export", str(gated), "--form", form, "--out", str(file)]) == (2 if picked else 0)
    if not PICKS:
        return {form: file for form, file in made.items() if form != "skip"}
    made["torch"] = made_in / "skip.pt2"
    assert run(["export", str(gated), "--to", "torch", "--form", "skip", "--out", str(made["torch"])]) == 0
    return made


@pytest.fixture
def converted(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the run's file in its masked form without converting the network again."""
    monkeypatch.setattr(Onnx, "write", lambda *_: files["masked"].read_bytes())


def reopened(file: Path) -> Any:
    """Return the network in a file, opened as its user opens it."""
    return opened(file) if file.suffix == ".onnx" else torch.export.load(file).module()


def details_in(file: Path) -> dict[str, Any]:
    if file.suffix == ".onnx":
        return details_of(file)
    torch.export.load(file, extra_files=(extra := {"gatewise": ""}))
    return json.loads(extra["gatewise"])


@pytest.mark.extended
@pytest.mark.parametrize("form", FORMS)
def test_exported_file_equals_network_on_any_route(
    gated: Path,
    files: dict[str, Path],
    form: str,
) -> None:
    net: Any = load_model(gated)[0]
    x = images_of(gated)
    reader = reopened(files[form])
    with torch.no_grad():
        logits, gates = net.forward_with_gates(x)
    if form == "compact":
        small = gw.compact(net, [images_of(gated)])
        assert reader(x[:1])[1].shape[1] < net.gate_count
        assert isinstance(small, gw.GaterNet)
    kinds = set()
    for size in (1, 2, 7):
        for start in range(0, 42, 7):
            part = slice(start, start + size)
            found, own = reader(x[part])
            close(found, logits[part])
            if form != "compact":
                assert torch.equal(own, gates[part])
            kinds |= {row.numpy().tobytes() for row in own}
    assert len(kinds) >= 2


@of_torch_that_picks
def test_exported_file_has_metadata(gated: Path, files: dict[str, Path]) -> None:
    config = load_model(gated)[1]
    for form, file in files.items():
        details = details_in(file)
        assert details["form"] == ("skip" if form == "torch" else form)
        assert (details["classes"], details["mean"], details["std"]) == tuple(
            config[key] for key in ("classes", "mean", "std")
        )
        assert details["versions"]["torch"] == torch.__version__
    model: Any = onnx.load(files["skip"])
    assert details_of(files["skip"])["versions"]["opset"] == model.opset_import[0].version
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits", "gates"]
    operators = {node.op_type for node in model.graph.node}
    assert {"NonZero", "Gather"} <= operators, "the open filters are picked in the graph"
    onnx.checker.check_model(model)


@pytest.mark.extended
def test_run_without_gater_has_only_logits(plain: Path, tmp_path: Path) -> None:
    found = export_run(plain, tmp_path / "plain.onnx")
    assert (found["kinds"], found["flipped"]) == (0, 0)
    logits = opened(tmp_path / "plain.onnx")(images_of(plain)[:3])
    close(logits, load_model(plain)[0](images_of(plain)[:3]).detach())
    with pytest.raises(GatewiseError, match="has no gater, so it has only the form masked"):
        export_run(plain, tmp_path / "none.onnx", form="skip")


def test_constant_route_is_detected_and_leaves_no_file(
    gated: Path,
    converted: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read = Onnx.open

    def frozen(self: Onnx, file: Path) -> Any:
        reader = read(self, file)

        def first_route(x: torch.Tensor) -> Any:
            logits, gates = reader(x)
            return logits, gates[:1].expand(len(x), -1)

        return first_route

    monkeypatch.setattr(Onnx, "open", frozen)
    (tmp_path / "frozen.onnx").write_text("an older one")
    assert run(["export", str(gated), "--out", str(tmp_path / "frozen.onnx")]) == 1
    assert "frozen.onnx was not written" in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("frozen.onnx", "an older one")]


@pytest.mark.extended
def test_without_progress_nothing_is_printed(gated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_run(gated, tmp_path / "gated.onnx", images=2)
    assert tuple(capfd.readouterr()) == ("", "")


def test_different_logits_are_detected(
    gated: Path, converted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Onnx.open

    def shifted(self: Onnx, file: Path) -> Any:
        reader = read(self, file)
        return lambda x: (reader(x)[0] + 0.1, reader(x)[1])

    monkeypatch.setattr(Onnx, "open", shifted)
    with pytest.raises(GatewiseError, match="its logits differ by up to"):
        export_run(gated, tmp_path / "shifted.onnx", images=10)


@pytest.mark.slow
def test_torch_file_is_compared_too(gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file on disk is compared: here another network was written."""
    other = load_model(gated)[0]
    with torch.no_grad():
        other.backbone.get_submodule("fc").bias += 1

    write = TorchExport.write

    def write_other(self: TorchExport, program: Any, details: dict[str, Any], output: str) -> bytes:
        return write(self, exported_program(WithGates(other), images_of(gated)[:2], free_size=False), details, output)

    assert export_run(gated, tmp_path / "a.pt2", to="torch", images=4)["difference"] < 1e-5
    monkeypatch.setattr(TorchExport, "write", write_other)
    with pytest.raises(GatewiseError, match=r"b\.pt2 was not written: on 4 images its logits differ"):
        export_run(gated, tmp_path / "b.pt2", to="torch", images=4)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt2"]


def test_agreement_matches_hand_count() -> None:
    def network(x: torch.Tensor) -> Any:
        return x * 2, (x > 0).float()

    def other(x: torch.Tensor) -> Any:
        return x * 2 + (x == 4), (x >= 0).float()

    x = torch.tensor([[4.0], [0.0], [-1.0]])
    assert agreement(network, other, [x]) == {"images": 3, "difference": 1 / 8, "flipped": 1, "kinds": 2}  # type: ignore[arg-type]


@pytest.mark.parametrize("written", [float("nan"), float("inf"), 0.0])
def test_agreement_sees_nan_and_infinity(written: float) -> None:
    unused = torch.tensor([False, True, False])

    def network(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(unused, -torch.inf)

    x = torch.tensor([[4.0, 5.0, 1.0], [2.0, 3.0, 0.0]])
    assert agreement(network, lambda x: network(x) + 0.5, [x])["difference"] == 0.5 / 4
    for other in (lambda x: x.masked_fill(unused, written), lambda x: torch.full_like(x, written)):
        found = agreement(network, other, [x])  # type: ignore[arg-type]
        assert found["difference"] == torch.inf
        with pytest.raises(TrainingError, match="its logits are infinite or NaN at other entries, and the gates of 0"):
            check_agreement(Path("x.onnx"), found)


@pytest.mark.slow
def test_segmenter_is_exported_with_dynamic_sizes(done: Path, folder: Path, tmp_path: Path) -> None:
    export_run(done, tmp_path / "seg.onnx", images=4)
    model, reader = load_model(done)[0], opened(tmp_path / "seg.onnx")
    for shape in ((1, 3, 32, 48), (2, 3, 40, 24)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            close(reader(x), model(x))


def test_wrong_arguments_rejected(
    gated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, message in (
        (["--form", "fast"], "unknown form 'fast'; expected one of 'compact', 'masked', 'routes', 'skip'"),
        (["--to", "tflite"], "unknown format 'tflite'"),
        (
            ["--to", "torch"],
            "a file of format torch must be named *.pt2, got x.onnx. Rename it, or choose another format",
        ),
        (["--to", "torch"], "format (to): onnx (ONNX, *.onnx), torch (an archive of torch.export, *.pt2)."),
        (["--int8", "--form", "skip"], "form masked, compact or routes, got onnx and skip"),
        (["--images", "1"], "images must be at least 2"),
    ):
        assert run(["export", str(gated), "--out", str(tmp_path / "x.onnx"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert run(["export", str(tmp_path), "--out", str(tmp_path / "x.onnx")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_suffix_of_format_is_unique() -> None:
    for name, suffix in (("onnx", ".other"), ("other", ".onnx")):
        with pytest.raises(GatewiseError, match=r"is taken by 'onnx' \(\*\.onnx\)\. Choose another name and suffix"):
            register_format(name, suffix=suffix, title="other")


# Prediction from files


def pictures(gated: Path, tmp_path: Path, count: int = 3) -> Path:
    tmp_path.mkdir(exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_images_that_can_be_read_are_predicted_and_others_set_the_exit_code(
    gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = pictures(gated, tmp_path / "photos")
    (photos / "00.png").write_bytes(b"no image")
    assert run(["predict", str(gated), str(photos), "--json"]) == 2
    printed = capsys.readouterr()
    assert [row["image"] for row in lines(printed.out)] == [str(photos / f"{number}.png") for number in range(3)]
    assert printed.err.startswith(f"gatewise: 1 of 4 images could not be read: {photos / '00.png'}: truncated")


@pytest.mark.parametrize("form", ONNX)
def test_exported_file_predicts_like_run(
    gated: Path,
    files: dict[str, Path],
    form: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = pictures(gated, tmp_path / "photos")
    assert run(["predict", str(gated), str(photos), "--json"]) == 0
    expected = lines(capsys.readouterr().out)
    assert run(["predict", str(files[form]), str(photos), "--json"]) == 0
    found = lines(capsys.readouterr().out)
    assert len(found) == 3
    for own, other in zip(found, expected, strict=True):
        assert own["image"] == other["image"]
        assert list(own["classes"]) == list(other["classes"])
        assert list(own["classes"].values()) == pytest.approx(list(other["classes"].values()), abs=1e-4)
        if form != "compact":
            assert own["open_gates"] == pytest.approx(other["open_gates"])


@pytest.mark.slow
def test_top_k_and_standard_input(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = pictures(gated, tmp_path, 1) / "0.png"
    command = [sys.executable, "-m", "gatewise", "predict", str(gated), "-", "--top-k", "2", "--json"]
    answer = subprocess.run(command, input=photo.read_bytes(), capture_output=True, check=True)
    (found,) = lines(answer.stdout.decode())
    assert found["image"] == "-"
    assert len(found["classes"]) == 2
    shares = list(found["classes"].values())
    assert shares == sorted(shares, reverse=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no image")))
    assert run(command[3:]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_files_from_other_sources_rejected_with_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corrupt.onnx").write_bytes(b"no graph")
    program = exported_program(torch.nn.Sequential(torch.nn.Flatten()), torch.zeros(2, 3, 4, 4), free_size=False)
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    exported.save(tmp_path / "foreign.onnx")
    graph = onnx.load(tmp_path / "foreign.onnx")
    graph.metadata_props.add(key="gatewise", value="MARK")
    (tmp_path / "bytes.onnx").write_bytes(graph.SerializeToString().replace(b"MARK", b"\xff\xfe\xfd\xfc"))
    graph.metadata_props[0].value = json.dumps({
        "classes": ["a", "b"],
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "image_size": [8, 8],
        "in_chans": 3,
    })  # but it takes 4x4
    onnx.save(graph, tmp_path / "sizes.onnx")
    (tmp_path / "net.pt2").write_bytes(b"a program")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    for name, message in (
        ("corrupt.onnx", "cannot be opened by ONNX Runtime"),
        ("bytes.onnx", "cannot be opened by ONNX Runtime ('utf-8' codec can't decode byte 0xff"),
        ("sizes.onnx", "cannot be run by ONNX Runtime"),
        ("foreign.onnx", "was not written by gatewise export"),
        (
            "net.pt2",
            "gatewise reads run folders, folders of save_pretrained, and files of gatewise export (*.onnx). A .pt2",
        ),
        ("photo.png", "photo.png was not opened: gatewise reads run folders, "),
    ):
        capsys.readouterr()
        assert run(["predict", str(tmp_path / name), str(tmp_path / "photo.png")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# int8


@pytest.fixture(scope="module")
def small_numbers(gated: Path) -> tuple[Path, dict[str, Any]]:
    file = gated.with_name("int8.onnx")
    return file, export_run(gated, file, int8=True, calibration=64)


def test_int8_and_float32_are_both_scored(small_numbers: tuple[Path, dict[str, Any]], gated: Path) -> None:
    file, found = small_numbers
    (opened_run,) = open_runs([gated])
    scores, gates = [], []
    for form in (WithGates(opened_run.model), opened(file)):
        with torch.no_grad():
            logits, own = (torch.cat(parts) for parts in zip(*map(form, opened_run.first()), strict=True))
        scores.append(float((logits.argmax(1) == opened_run.images.labels).float().mean()))
        gates.append(own)
    assert [found["float32"], found["int8"]] == pytest.approx(scores, abs=1e-6)
    assert scores[0] != scores[1], "or the test could not tell which is which"
    assert found["other_gates"] == pytest.approx(float((gates[0] != gates[1]).any(1).float().mean()), abs=1e-6)


def test_int8_weights_are_bytes_and_metadata_says_int8(
    small_numbers: tuple[Path, dict[str, Any]], files: dict[str, Path], gated: Path
) -> None:
    file, found = small_numbers
    graph = onnx.load(file).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    dequantised = {
        node.output[0]: types.get(node.input[0]) for node in graph.node if node.op_type == "DequantizeLinear"
    }
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(m, torch.nn.Conv2d) for m in load_model(gated)[0].modules())
    assert {dequantised[node.input[1]] for node in convolutions} == {onnx.TensorProto.INT8}
    assert found["bytes"] < 0.5 * files["masked"].stat().st_size
    assert details_of(file)["int8"] == {"calibration": 64}
    assert "int8" not in details_of(files["masked"])


def test_ranges_come_from_given_number_of_training_images(
    monkeypatch: pytest.MonkeyPatch, gated: Path, converted: None, tmp_path: Path
) -> None:
    seen: list[torch.Tensor] = []

    def noted(file: Path, batches: Any) -> None:
        seen.extend(batches)

    monkeypatch.setattr("gatewise.exporting.formats.onnx.to_int8", noted)
    found = export_run(gated, tmp_path / "a.onnx", int8=True, calibration=70)
    (opened_run,) = open_runs([gated], split="train")
    assert torch.equal(torch.cat(seen), torch.cat(list(opened_run.first(70))))
    assert (found["int8"], found["other_gates"]) == (found["float32"], 0), "nothing was quantised here"


def int8_of(spec: str, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of a network and of its file in int8."""
    x = torch.randn(8, 3, 32, 32)
    net = gw.make_model(spec, seed=0).eval()
    file.write_bytes(Onnx().write(exported_program(WithGates(net), x[:2], free_size=False), {}, "logits"))
    to_int8(file, [x])
    with torch.no_grad():
        return net(x), opened(file)(x)


@pytest.mark.extended
@pytest.mark.parametrize(
    "gate", ["gct", *(pytest.param(n, marks=pytest.mark.slow) for n in gw.gate_names() if n != "gct")]
)
def test_networks_with_any_gate_are_quantised(gate: str, tmp_path: Path) -> None:
    expected, found = int8_of(f"resnet20+{gate}", tmp_path / "net.onnx")
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert 1e-6 < difference < 0.3


ADVICE = """
import logging, warnings
logging.warning("Please consider pre-processing before quantization")
warnings.warn("the ranges are narrow", UserWarning, stacklevel=1)
"""


def test_quantiser_advice_is_hidden_and_other_messages_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The batches are read while ONNX Runtime works, by code that prints its own messages."""
    import onnxruntime.quantization

    quantize, module = onnxruntime.quantization.quantize_static, "onnxruntime.quantization.quantize"
    advice = compile(ADVICE, sys.modules[module].__file__ or "", "exec")

    def advising(*arguments: Any, **options: Any) -> None:
        exec(advice, {"__name__": module})
        quantize(*arguments, **options)

    def batches() -> Iterator[torch.Tensor]:
        logging.warning("an image is damaged")
        warnings.warn("an image is small", UserWarning, stacklevel=1)
        yield torch.randn(2, 3, 32, 32)

    monkeypatch.setattr(onnxruntime.quantization, "quantize_static", advising)
    program = exported_program(torch.nn.Conv2d(3, 4, 3), torch.randn(2, 3, 32, 32), free_size=False)
    (tmp_path / "net.onnx").write_bytes(Onnx().write(program, {}, "logits"))
    root, filters = logging.getLogger(), list(warnings.filters)
    before = root.disabled, root.level, list(root.filters)
    caplog.clear()
    with pytest.warns(UserWarning, match="an image is small") as warned:
        to_int8(tmp_path / "net.onnx", batches())
    assert [record.message for record in caplog.records if record.name == "root"] == ["an image is damaged"]
    assert [str(warning.message) for warning in warned] == ["an image is small"]
    assert (root.disabled, root.level, list(root.filters)) == before
    assert list(warnings.filters) == filters


def test_unquantisable_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "corrupt.onnx").write_bytes(b"no graph")
    with pytest.raises(GatewiseError, match="ONNX Runtime cannot quantise this network"):
        to_int8(tmp_path / "corrupt.onnx", [])


@pytest.mark.parametrize("options", [["--to", "torch", "--out", "a.pt2"], ["--form", "skip", "--out", "a.onnx"]])
def test_int8_needs_fixed_weights(gated: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(gated), "--int8", *options]) == 2
    assert "int8 needs format onnx and form masked, compact or routes" in capsys.readouterr().err


@pytest.mark.slow
def test_int8_on_command_line(gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "export",
        str(gated),
        "--form",
        "compact",
        "--int8",
        "--calibration",
        "64",
        "--out",
        str(tmp_path / "a.onnx"),
    ]
    assert run(command) == 0
    scores = r"accuracy: [0-9.]+ % in float32, [0-9.]+ % in int8; "
    differences = r"logits differ by at most [0-9.]+ % of the largest, [0-9.]+ % of the images have different gates\n"
    assert re.search(scores + differences + r".* images: logits in float32 differ by", capsys.readouterr().out)
    Image.new("L", (20, 10), 120).save(tmp_path / "photo.png")
    assert run(["predict", str(tmp_path / "a.onnx"), str(tmp_path / "photo.png")]) == 0
