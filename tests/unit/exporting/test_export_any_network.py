"""`gw.export` and `gw.predict` with networks that were trained elsewhere; ONNX Runtime and torch open the files."""

import copy
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

import gatewise as gw
from gatewise.errors import DataError, InvalidTypeError, InvalidValueError, TrainingError
from gatewise.exporting import details_of
from gatewise.exporting.formats.onnx import Onnx
from support.given_networks import gater_network, plain_network
from support.releases import release

IMAGES = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(0))
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SCALE: dict[str, Any] = {"mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
PICKS = pytest.mark.skipif(release(torch.__version__) <= (2, 11), reason="torch 2.11 cannot export the form skip")


def gated() -> nn.Sequential:
    net = plain_network(3)
    gw.insert_gates(net, "gct")
    for gate in gw.gates_in(net).values():
        nn.init.normal_(gate.beta, std=0.5)
    return net


def gater_net() -> gw.GaterNet:
    return gater_network(12, 3).eval()


def in_runtime(file: Path, images: Tensor) -> list[Tensor]:
    """Return the outputs of a file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [(value.name, value.type) for value in session.get_inputs()] == [("image", "tensor(float)")]
    return [torch.from_numpy(output) for output in session.run(None, {"image": images.numpy()})]


@pytest.mark.situation("networks without a run: export of inserted gates")
def test_network_with_inserted_gates_is_exported(tmp_path: Path) -> None:
    net = gated().train()
    flags = [module.training for module in net.modules()]
    found = gw.export(net, tmp_path / "net.onnx", example=IMAGES[:1])
    assert [module.training for module in net.modules()] == flags
    assert found["difference"] < 1e-5
    assert (found["to"], found["form"], found["images"], found["kinds"]) == ("onnx", "masked", 1, 0)
    (logits,) = in_runtime(tmp_path / "net.onnx", IMAGES)
    torch.testing.assert_close(logits, net.eval()(IMAGES).detach(), rtol=1e-4, atol=1e-5)
    assert details_of(tmp_path / "net.onnx")["image_size"] == [12, 12]


@pytest.mark.extended
@pytest.mark.situation("export of a GaterNet without a run")
@pytest.mark.parametrize("form", ["masked", "compact", pytest.param("skip", marks=PICKS)])
def test_gater_net_is_exported_in_each_form(form: str, tmp_path: Path) -> None:
    net = gater_net()
    with torch.no_grad():
        expected, gates = net.forward_with_gates(IMAGES)
    found = gw.export(net, tmp_path / "net.onnx", example=IMAGES[:2], form=form, loader=[(IMAGES, torch.zeros(12))])
    assert (found["form"], found["images"]) == (form, 12)
    logits, own = in_runtime(tmp_path / "net.onnx", IMAGES)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    varying = gates.bool().any(0) & ~gates.bool().all(0)
    assert torch.equal(own, gates[:, varying] if form == "compact" else gates)


@pytest.mark.situation("networks without a run: export of a compacted network")
def test_compacted_network_is_exported_to_torch(tmp_path: Path) -> None:
    small = gw.compact(gater_net(), [IMAGES])
    gw.export(small, tmp_path / "net.pt2", example=IMAGES[:4])
    logits, _ = torch.export.load(tmp_path / "net.pt2").module()(IMAGES)
    torch.testing.assert_close(logits, small(IMAGES), rtol=1e-4, atol=1e-5)


def test_compact_form_over_the_example_alone_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="gates that are the same for all 3 images of the example are frozen"):
        gw.export(gater_net(), tmp_path / "net.onnx", example=IMAGES[:3], form="compact")
    torch.testing.assert_close(
        in_runtime(tmp_path / "net.onnx", IMAGES[:3])[0], gater_net()(IMAGES[:3]).detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.situation("networks without a run: int8 from a loader")
def test_int8_takes_its_ranges_from_a_loader(tmp_path: Path) -> None:
    net = gated()
    found = gw.export(net, tmp_path / "net.onnx", example=IMAGES[:2], loader=[IMAGES], int8=[{"image": IMAGES}])
    assert 0 < found["int8_difference"] < 0.2
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    logits = session.run(None, {"image": IMAGES.numpy()})[0]
    error = np.abs(logits - net(IMAGES).detach().numpy()).max()
    assert 0 < error < 0.2 * np.abs(logits).max()


def test_int8_needs_a_format_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="int8 needs format onnx and form masked, compact or routes, got torch"):
        gw.export(gated(), tmp_path / "net.pt2", example=IMAGES[:2], int8=[IMAGES])


def test_images_of_any_size(tmp_path: Path) -> None:
    net = gated()
    gw.export(net, tmp_path / "net.onnx", example=IMAGES[:2], any_size=True)
    (image,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).get_inputs()
    assert image.shape == ["batch", 3, "height", "width"]
    with pytest.raises(DataError, match=r"net\.onnx has no classes, mean, std, which predictions need\. Export it"):
        list(gw.predict(tmp_path / "net.onnx", []))
    larger = torch.randn(3, 3, 20, 16)
    torch.testing.assert_close(in_runtime(tmp_path / "net.onnx", larger)[0], net(larger).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("axes", "names"), [(1, ["length"]), (3, ["depth", "height", "width"])])
def test_signals_and_volumes_of_any_size(axes: int, names: list[str], tmp_path: Path) -> None:
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    net = nn.Sequential(kind(1, 4, 3, padding=1), nn.ReLU(), kind(4, 2, 1))
    gw.insert_gates(net, "gct", example=torch.zeros(2, 1, *[8] * axes))
    gw.export(net, tmp_path / "net.onnx", example=torch.randn(2, 1, *[8] * axes), any_size=True, classes=["a", "b"])
    (image,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).get_inputs()
    assert image.shape == ["batch", 1, *names]
    assert details_of(tmp_path / "net.onnx")["task"] == "segment"
    larger = torch.randn(3, 1, *[10, 9, 11][:axes])
    torch.testing.assert_close(in_runtime(tmp_path / "net.onnx", larger)[0], net(larger).detach(), rtol=1e-4, atol=1e-5)


class Elsewhere(Tensor):
    """A tensor on another device: operations of it and a tensor of the CPU raise."""

    device = torch.device("cuda")  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, operation: Any, kinds: Any, args: Any = (), named: Any = None) -> Any:
        if operation is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        if any(type(value) is Tensor or type(value) is nn.Parameter for value in args):
            raise RuntimeError("expected all tensors to be on the same device")
        return super().__torch_function__(operation, kinds, args, named or {})


class OnGpu(nn.Module):
    """A network with a tensor on another device, which Python cannot copy."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lock = gated(), threading.Lock()
        self.register_buffer("offset", torch.ones(3).as_subclass(Elsewhere))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.offset


@pytest.mark.situation("networks without a run: export of a network and images on another device")
def test_network_and_images_on_another_device_are_exported(tmp_path: Path) -> None:
    net, images = OnGpu(), IMAGES.as_subclass(Elsewhere)
    found = gw.export(net, tmp_path / "net.onnx", example=images[:2], loader=[images], int8=[images])
    assert found["images"] == 12
    assert type(net.offset) is Elsewhere
    with torch.no_grad():
        expected = net.net(IMAGES) + 1
    assert (in_runtime(tmp_path / "net.onnx", IMAGES)[0] - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((-1,), {"classes": ["a", "b"]}, r"classes need an output of one number for each class, \(N, 2\), .* \(2,\)"),
        ((), {}, r"an entry for each image along its first axis, but Shaped returns shape \(\) for 1 image\. Wrap"),
        ((1, -1), {}, r"returns shape \(1, 2\) for 2 images"),
    ],
)
def test_output_without_an_axis_is_rejected(
    shape: tuple[int, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).mean((1, 2, 3))
            return y.reshape(shape) if shape else y.squeeze()

    with pytest.raises(InvalidValueError, match=message):
        gw.export(Shaped(), tmp_path / "net.onnx", example=IMAGES[:2], **options)


def test_output_in_a_dict_is_exported_and_several_outputs_are_refused(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.net, self.count = plain_network(3), count

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {f"out{number}": self.net(x) for number in range(self.count)}

    gw.export(Named(1), tmp_path / "net.onnx", example=IMAGES[:2])
    torch.testing.assert_close(in_runtime(tmp_path / "net.onnx", IMAGES)[0], plain_network(3)(IMAGES).detach())
    with pytest.raises(InvalidValueError, match=r"output is one tensor, but Named returns 2\. Wrap it"):
        gw.export(Named(2), tmp_path / "two.onnx", example=IMAGES[:2])


def test_network_in_which_values_decide_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).mean((2, 3))
            return y if y.sum() > 0 else 2 * y

    with pytest.raises(InvalidValueError, match="cannot write this network for onnx: values that it computes") as error:
        gw.export(Undecided(), tmp_path / "net.onnx", example=IMAGES[:2])
    assert str(error.value).endswith("Choose by operations on tensors, such as torch.where.")
    assert capfd.readouterr() == ("", ""), "torch prints the graph and logs a warning before it raises"


def test_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Onnx.open
    monkeypatch.setattr(Onnx, "open", lambda self, file: lambda x: read(self, file)(x) + 0.1)
    with pytest.raises(TrainingError, match="was not written"):
        gw.export(gated(), tmp_path / "net.onnx", example=IMAGES[:2])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "skip"}, InvalidValueError, "Sequential has no gater, so it has only the form masked"),
        ({"form": "small"}, InvalidValueError, "form"),
        ({"to": "torch"}, InvalidValueError, "must be named"),
        ({"example": IMAGES[0, 0]}, InvalidValueError, "export expects batches"),
        ({"example": "photo.jpg"}, InvalidTypeError, "images in floating point"),
        ({"loader": []}, InvalidValueError, "the loader has no images"),
        ({"classes": ["a"]}, InvalidValueError, "has 3 outputs and 1 classes are given"),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229] * 3}, InvalidValueError, r"from 0 to 255, .* mean \[123.675"),
        ({"mean": [127.0]}, InvalidValueError, "one value for each of 3 channels"),
    ],
)
def test_arguments_that_do_not_fit(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        gw.export(gated(), tmp_path / "net.onnx", **{"example": IMAGES[:2], **options})
    assert not [*tmp_path.iterdir()]


def test_skipping_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidTypeError, match="give the GaterNet"):
        gw.export(gw.skip_closed_filters(gater_net(), "mask"), tmp_path / "net.onnx", example=IMAGES[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_network_of_another_precision_is_exported_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    """The file was compared too strictly, or could not be opened."""
    net = gated().to(dtype)
    gw.export(net, tmp_path / "net.onnx", example=IMAGES[:2].to(dtype), loader=[IMAGES.to(dtype)])
    assert {p.dtype for p in net.parameters()} == {dtype}
    expected = copy.deepcopy(net).float().eval()(IMAGES)
    assert in_runtime(tmp_path / "net.onnx", IMAGES)[0] == pytest.approx(expected.detach(), abs=1e-4)


@pytest.fixture
def new_accelerator() -> Iterator[None]:
    """Let the test choose the precision of the process, which the first Accelerator sets for all."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("new_accelerator")
def test_network_prepared_for_mixed_precision_is_exported_in_float32(tmp_path: Path) -> None:
    net = gated().eval()
    expected = net(IMAGES).detach()
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(net)
    before = prepared(IMAGES)
    gw.export(prepared, tmp_path / "net.onnx", example=IMAGES[:2])
    assert in_runtime(tmp_path / "net.onnx", IMAGES)[0] == pytest.approx(expected, abs=1e-4)
    assert torch.equal(prepared(IMAGES), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_network_of_jit_is_refused_with_what_to_do(tmp_path: Path) -> None:
    traced = torch.jit.trace(plain_network(3).eval(), IMAGES[:2])
    with pytest.raises(InvalidTypeError, match="Export the network that it was made from"):
        gw.export(traced, tmp_path / "net.onnx", example=IMAGES[:2])


# Prediction


class Brightest(nn.Module):
    """The mean of each channel as the logit of its colour; the dropout shows whether eval mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.first.weight)
        self.dropout = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.first(x).mean((2, 3)))


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    for name, colour in COLOURS.items():
        Image.new("RGB", (9, 7), colour).save(tmp_path / f"{name}.png")
    return [str(tmp_path / f"{name}.png") for name in COLOURS]


@pytest.mark.situation("networks without a run: prediction of image files")
def test_network_predicts_image_files(photos: list[str]) -> None:
    net = Brightest().train()
    gw.insert_gates(net, "gct")
    found = list(gw.predict(net, photos, classes=list(COLOURS), image_size=(8, 8), **SCALE))
    assert [next(iter(row["classes"])) for row in found] == list(COLOURS)
    share = float(torch.tensor([1.0, 0.0, 0.0]).softmax(0)[0])
    assert found[0]["classes"]["red"] == pytest.approx(share, rel=1e-6)
    assert net.training
    assert net.dropout.training


@pytest.mark.situation("networks without a run: prediction of images of which some cannot be read")
def test_images_that_cannot_be_read_are_named_after_the_others(photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "phone.heic").write_bytes(b"")
    given = [photos[0], str(tmp_path / "broken.png"), photos[1], str(tmp_path / "phone.heic"), photos[2]]
    rows = gw.predict(Brightest(), given, classes=list(COLOURS), image_size=(8, 8), **SCALE)
    assert [next(rows)["image"] for _ in photos] == photos
    message = r"^2 of 5 images could not be read: .*broken\.png: truncated .*phone\.heic: HEIC is not read"
    with pytest.raises(DataError, match=message):
        next(rows)


def test_exported_file_predicts_like_its_network(photos: list[str], tmp_path: Path) -> None:
    details: dict[str, Any] = {"classes": list(COLOURS), **SCALE}
    net = Brightest()
    gw.export(net, tmp_path / "net.onnx", example=torch.rand(2, 3, 8, 8), **details)
    found = [
        list(gw.predict(tmp_path / "net.onnx", photos)),
        list(gw.predict(net, photos, image_size=(8, 8), **details)),
    ]
    for one, other in zip(*found, strict=True):
        assert one["image"] == other["image"]
        assert one["classes"] == pytest.approx(other["classes"], rel=1e-5)


def test_gater_net_predicts_with_its_open_gates(photos: list[str]) -> None:
    net = gater_net()
    (row,) = gw.predict(net, photos[:1], classes=["a", "b", "c"], image_size=(12, 12), **SCALE)
    red = torch.zeros(1, 3, 12, 12)
    red[:, 0] = 1
    with torch.no_grad():
        logits, gates = net.forward_with_gates(red)
    assert row["open_gates"] == pytest.approx(float(gates.mean()))
    expected = dict(zip("abc", logits[0].softmax(0).tolist(), strict=True))
    assert row["classes"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("classes", [["red"], [*COLOURS, "black"]])
def test_predict_needs_a_name_for_each_output(photos: list[str], classes: list[str]) -> None:
    with pytest.raises(InvalidValueError, match=rf"returns shape \(1, 3\) for one image, and {len(classes)} classes"):
        next(gw.predict(Brightest(), photos, classes=classes, image_size=(8, 8), **SCALE))


def test_predict_says_what_a_network_needs(photos: list[str]) -> None:
    with pytest.raises(InvalidTypeError, match="predict needs mean, std, image_size for a network, for example"):
        next(gw.predict(Brightest(), photos, classes=list(COLOURS)))
    with pytest.raises(InvalidTypeError, match=r"classes: only for a network; net\.onnx has its own"):
        next(gw.predict("net.onnx", photos, classes=list(COLOURS)))
    with pytest.raises(InvalidValueError, match="Multiply them by 255"):
        next(gw.predict(Brightest(), photos, classes=["a"], mean=[0.5], std=[0.5], image_size=(8, 8)))


def test_export_of_a_plain_network_does_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gw.export(plain_network(3), tmp_path / "net.onnx", example=IMAGES[:2])
    assert (tmp_path / "net.onnx").stat().st_size > 1000
