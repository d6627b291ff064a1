"""Weights of other projects load into our networks with equal outputs, and are written back in their format."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import gatewise as gw
from gatewise import GatewiseError
from gatewise.models.weights import LAYOUTS
from gatewise.models.weights.load import SOURCES
from support.foreign import GctResNet50, MmcvContext, MmcvNonLocal, ReleasedGaterNet, Triplet, shaken

TINY = (1, 1, 1, 1)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tiny_v1(gate: str = "gct") -> nn.Module:
    """Return a bottleneck ResNet of four units, strides in the first convolutions, as resnet50_v1 is built."""
    model = timm.models.ResNet(timm.models.resnet.Bottleneck, TINY, num_classes=7)
    for block in (model.layer2[0], model.layer3[0], model.layer4[0]):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    gw.insert_gates(model, gate)
    return model.eval()


def tiny(gate: str, block: Any = timm.models.resnet.Bottleneck, **options: Any) -> nn.Module:
    model = timm.models.ResNet(block, TINY, num_classes=7)
    gw.insert_gates(model, gate, **options)
    return model.eval()


def with_blocks(kind: Callable[[int], nn.Module], name: str, block: Any = timm.models.resnet.Bottleneck) -> nn.Module:
    """Return a plain ResNet with a block at the end of each residual branch, stored in the unit."""
    model = timm.models.ResNet(block, TINY, num_classes=7)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        unit: Any = stage[0]
        last = unit.bn3 if hasattr(unit, "bn3") else unit.bn2
        gate = kind(last.num_features)
        unit.add_module(name, gate)
        last.register_forward_hook(lambda _, __, output, gate=gate: gate(output))
    return shaken(model)


@torch.no_grad()
def agree(ours: nn.Module, theirs: nn.Module, images: Tensor = IMAGES) -> bool:
    expected = theirs(images)
    torch.testing.assert_close(ours(images), expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))
    return bool((expected[0] - expected[1]).abs().max() > 1e-6)  # the images differ


def written(weights: Any, file: Path) -> Path:
    torch.save(weights, file)
    return file


def test_released_gct_network_loads_completely(tmp_path: Path) -> None:
    theirs = shaken(GctResNet50())
    weights = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = gw.make_model("resnet50_v1+gct").eval()
    loaded = gw.load_weights(ours, written({"state_dict": weights, "epoch": 99}, tmp_path / "gct.pth.tar"))
    assert (loaded.source, loaded.kept, loaded.left_out) == ("gct", (), ())
    assert loaded.notes == ("the prefix 'module.' was removed from the names in the file",)
    assert len(loaded.filled) == len(weights) == len(ours.state_dict())
    assert len(gw.gates_in(ours)) == 53
    assert agree(ours, theirs)


def test_resnet50_v1_has_published_multiply_adds() -> None:
    from gatewise.graph.measure import macs_per_sample

    assert round(macs_per_sample(gw.make_model("resnet50_v1"), torch.zeros(1, 3, 224, 224)) / 1e9, 2) == 3.86


def test_network_similar_to_released_one_rejected(tmp_path: Path) -> None:
    file = written(GctResNet50(TINY, 7).state_dict(), tmp_path / "gct.pth")
    with pytest.raises(GatewiseError, match=r"stride of each stage in its first 1x1.*resnet50_v1"):
        gw.load_weights(tiny("gct"), file)


@pytest.mark.parametrize("multiply", [False, True])
def test_context_blocks_of_mmcv_load(tmp_path: Path, *, multiply: bool) -> None:
    theirs = with_blocks(lambda c: MmcvContext(c, 1 / 16, multiply=multiply), "context_block")
    ours = tiny("gc", fusion="both" if multiply else "add")
    loaded = gw.load_weights(ours, written({"state_dict": theirs.state_dict()}, tmp_path / "gc.pth"))
    assert loaded.source == "mmcv"
    assert agree(ours, theirs)


@pytest.mark.extended
@pytest.mark.parametrize("norm", [False, True])
def test_non_local_blocks_of_mmcv_load(tmp_path: Path, *, norm: bool) -> None:
    theirs = with_blocks(lambda c: MmcvNonLocal(c, norm=norm), "nonlocal_block")
    ours = tiny("nl")
    loaded = gw.load_weights(ours, written(theirs.state_dict(), tmp_path / "nl.pth"))
    assert loaded.source == "mmcv"
    assert bool(loaded.notes) == norm
    assert agree(ours, theirs)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("block", [timm.models.resnet.Bottleneck, timm.models.resnet.BasicBlock])
def test_both_layouts_of_triplet_attention_load(tmp_path: Path, block: Any, *, old: bool) -> None:
    theirs = with_blocks(lambda _: Triplet(old=old), "triplet_attention", block)
    ours = tiny("triplet", block)
    assert gw.load_weights(ours, written(theirs.state_dict(), tmp_path / "triplet.pth")).source == "triplet"
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))  # height and width differ
    assert agree(ours, theirs, images)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["pcam", "triplet"])
def test_triplet_attention_loads_by_earlier_names(tmp_path: Path, name: str) -> None:
    theirs, ours = with_blocks(lambda _: Triplet(old=True), name), tiny("triplet")
    gw.load_weights(ours, written(theirs.state_dict(), tmp_path / "triplet.pth"))
    assert agree(ours, theirs)
    newer, other = with_blocks(lambda _: Triplet(old=False), name), tiny("triplet")
    gw.load_weights(other, written(newer.state_dict(), tmp_path / "newer.pth"), source="triplet")
    assert agree(other, newer)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("layer", "gate", "options"),
    [
        ("se", "se", {}),
        ("gc", "gc", {"fusion": "multiply", "rd_ratio": 1 / 8, "eps": 1e-6}),
        ("gca", "gc", {"fusion": "add", "rd_ratio": 1 / 8, "eps": 1e-6}),
        ("eca", "eca", {}),
        ("nl", "nl", {"rd_ratio": 1 / 8}),
    ],
)
def test_attention_layers_of_timm_load(tmp_path: Path, layer: str, gate: str, options: dict[str, Any]) -> None:
    block = timm.models.resnet.Bottleneck
    theirs = shaken(timm.models.ResNet(block, TINY, num_classes=7, block_args={"attn_layer": layer}))
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours = tiny(gate, **options)
    loaded = gw.load_weights(ours, tmp_path / "timm.safetensors")
    assert loaded.source == "timm"
    assert bool(loaded.notes) == (layer == "nl")
    assert agree(ours, theirs)


def test_different_timm_default_is_reported(tmp_path: Path) -> None:
    options = {"num_classes": 7, "block_args": {"attn_layer": "gca"}}
    theirs = timm.models.ResNet(timm.models.resnet.Bottleneck, TINY, **options)
    file = written(theirs.state_dict(), tmp_path / "timm.pth")
    assert "eps 1e-6, here 1e-05; build with gc:eps=1e-6" in str(gw.load_weights(tiny("gc", rd_ratio=1 / 8), file))
    message = r"of another shape \(.*channel_add_conv.0.weight \(32, 256, 1, 1\), expected"
    with pytest.raises(GatewiseError, match=message):
        gw.load_weights(tiny("gc"), file)


@pytest.mark.extended
@pytest.mark.parametrize("depth", [20, 56])
def test_released_gaternet_loads(tmp_path: Path, depth: int) -> None:
    theirs = shaken(ReleasedGaterNet(depth))
    ours = gw.make_model(f"resnet{depth}+gaternet:sites=residual,gater=resnet20", num_classes=10)
    loaded = gw.load_weights(ours.eval(), written(theirs.checkpoint(), tmp_path / "gaternet.pt"))
    assert (loaded.source, loaded.kept, loaded.left_out) == ("gaternet", (), ())
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images *= torch.logspace(-2, 2, 8).view(-1, 1, 1, 1)
    with torch.no_grad():
        expected, gates = theirs(images)
        output, own = ours.forward_with_gates(images)  # type: ignore[operator]
    assert torch.equal(own, gates)
    assert 0 < float(gates.mean()) < 1
    assert bool((gates != gates[0]).any())
    for own_logits, their_logits in zip(output, expected, strict=True):
        torch.testing.assert_close(own_logits, their_logits, rtol=2e-4, atol=2e-4 * float(their_logits.abs().max()))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("to", "make"),
    [
        ("gct", lambda: tiny_v1("gct")),
        ("mmcv", lambda: tiny("gc", fusion="both")),
        pytest.param("mmcv", lambda: tiny("nl"), marks=pytest.mark.slow),
        ("timm", lambda: tiny("gc", fusion="both", eps=1e-6)),
        pytest.param("timm", lambda: tiny("se"), marks=pytest.mark.slow),
        pytest.param("timm", lambda: tiny("eca"), marks=pytest.mark.slow),
        ("triplet", lambda: tiny("triplet")),
        ("gaternet", lambda: gw.make_model("resnet20+gaternet:sites=residual,gater=resnet20")),
    ],
)
def test_export_and_import_round_trip(tmp_path: Path, to: str, make: Callable[[], nn.Module]) -> None:
    trained, fresh = shaken(make()), make()
    theirs = gw.convert_weights(trained, to)
    loaded = gw.load_weights(fresh, written(theirs, tmp_path / "theirs.pt"))
    assert loaded.source == to
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_exported_weights_have_original_names_and_shapes() -> None:
    theirs = GctResNet50(TINY, 7).state_dict()
    ours = gw.convert_weights(tiny_v1(), "gct")
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    options = {"num_classes": 7, "block_args": {"attn_layer": "gca"}}
    model = timm.models.ResNet(timm.models.resnet.Bottleneck, TINY, **options)
    model.load_state_dict(gw.convert_weights(tiny("gc", rd_ratio=1 / 8), "timm"))
    released = ReleasedGaterNet(20)
    parts = gw.convert_weights(gw.make_model("resnet20+gaternet:sites=residual,gater=resnet20"), "gaternet")
    released.backbone.load_state_dict(parts["backbone_state_dict"])
    released.gater.load_state_dict(parts["gater_state_dict"])


def test_gate_without_foreign_form_rejected() -> None:
    with pytest.raises(GatewiseError, match="batch norm and scales the attention differently"):
        gw.convert_weights(tiny("nl"), "timm")
    with pytest.raises(GatewiseError, match="stride of each stage"):
        gw.convert_weights(tiny("gct"), "gct")
    with pytest.raises(GatewiseError, match="unknown layout 'caffe'"):
        gw.convert_weights(tiny("gct"), "caffe")


@pytest.mark.extended
@pytest.mark.parametrize("detector", ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_torchvision_detectors_load_mmdetection_backbone(tmp_path: Path, detector: str) -> None:
    import torchvision

    theirs = timm.create_model("resnet50")
    for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
        for unit in stage:
            unit.add_module("context_block", MmcvContext(unit.bn3.num_features, 1 / 16))
    shaken(theirs)
    weights = {f"backbone.{n}": t for n, t in theirs.state_dict().items() if not n.startswith("fc.")}
    weights["neck.lateral_convs.0.conv.weight"] = torch.zeros(256, 256, 1, 1)
    file = written({"state_dict": weights, "meta": {"epoch": 12}}, tmp_path / "mask_rcnn_r50_gcb.pth")
    ours = getattr(torchvision.models.detection, detector)(weights=None, weights_backbone=None, num_classes=3)
    gw.insert_gates(ours.backbone.body, "gc", include=r"layer[234]\.")
    head = {name: t.clone() for name, t in ours.state_dict().items() if ".body." not in name}
    loaded = gw.load_weights(ours, file)
    assert loaded.left_out == ("neck.lateral_convs.0.conv.weight",)
    assert loaded.kept == ()
    own = ours.backbone.body.state_dict()
    assert all(torch.equal(own[n], t) for n, t in theirs.state_dict().items() if n in own)
    gate = "layer3.2.bn3.gc.channel_add_conv.3.weight"
    assert torch.equal(own[gate], theirs.state_dict()["layer3.2.context_block.channel_add_conv.3.weight"])
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in head.items())


def test_torchvision_detectors_load_released_gct_network(tmp_path: Path) -> None:
    import torchvision

    theirs = shaken(GctResNet50())
    file = written(
        {"model": {f"module.backbone.body.{n}": t for n, t in theirs.state_dict().items()}}, tmp_path / "d.pth"
    )
    ours = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    gw.insert_gates(ours.backbone.body, "gct")
    with pytest.raises(GatewiseError, match="stride of each stage"):
        gw.load_weights(ours, file)
    for name in ("layer2", "layer3", "layer4"):
        unit = ours.backbone.body[name][0]
        unit.conv1.stride, unit.conv2.stride = unit.conv2.stride, unit.conv1.stride
    assert gw.load_weights(ours, file).left_out == ("fc.weight", "fc.bias")


def test_plain_checkpoint_leaves_gates_unchanged(tmp_path: Path) -> None:
    plain = shaken(timm.models.ResNet(timm.models.resnet.Bottleneck, TINY, num_classes=7))
    ours = tiny("gct")
    loaded = gw.load_weights(ours, written(plain.state_dict(), tmp_path / "plain.pth"))
    assert loaded.source == "gatewise"
    assert len(loaded.kept) == 3 * len(gw.gates_in(ours))
    assert agree(ours, plain)


def test_plain_weights_fill_backbone_of_gaternet(tmp_path: Path) -> None:
    plain = shaken(gw.make_model("resnet20"))
    net: Any = gw.make_model("resnet20+gaternet:budget=0.5")
    gw.load_weights(net, written(plain.state_dict(), tmp_path / "plain.pth"))
    assert torch.equal(net.backbone.fc.weight, plain.fc.weight)  # type: ignore[union-attr]


def test_wrapper_prefixes_are_stripped_only_at_start(tmp_path: Path) -> None:
    """`submodule.` and a submodule named `module` belong to the network; other prefixes belong to wrappers."""

    def network() -> nn.Module:
        parts = {"submodule": nn.Conv2d(3, 4, 3), "module": nn.Conv2d(4, 4, 3), "head": nn.Conv2d(4, 2, 1)}
        return nn.Sequential(OrderedDict(trunk=nn.Sequential(OrderedDict(parts))))

    saved, ours = network(), network()
    saved.trunk = torch.compile(saved.trunk)  # as in fine-tuning that compiles the slow part alone
    weights = nn.DataParallel(torch.compile(saved)).state_dict()
    assert "module._orig_mod.trunk._orig_mod.submodule.weight" in weights
    loaded = gw.load_weights(ours, written(weights, tmp_path / "wrapped.pth"))
    assert set(loaded.filled) == set(ours.state_dict())
    assert torch.equal(ours.trunk.submodule.weight, saved.trunk.submodule.weight)
    assert torch.equal(ours.trunk.module.weight, saved.trunk.module.weight)


def test_mismatch_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    weights = shaken(tiny("gct")).state_dict()
    del weights["layer1.0.conv1.weight"]
    weights["layer9.weight"] = torch.zeros(1)
    weights["fc.weight"] = torch.zeros(1000, 2048)
    file = written(weights, tmp_path / "other.pth")
    ours = tiny("gct")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(GatewiseError) as error:
        gw.load_weights(ours, file)
    message = str(error.value)
    assert "missing (1): layer1.0.conv1.weight" in message
    assert "unexpected (1): layer9.weight" in message
    assert "of another shape (1): fc.weight (1000, 2048), expected (7, 2048)" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    loaded = gw.load_weights(ours, file, strict=False)
    assert (loaded.left_out, loaded.reshaped) == (("layer9.weight",), ("fc.weight",))
    assert "layer1.0.conv1.weight" in loaded.kept
    assert torch.equal(ours.state_dict()["bn1.weight"], weights["bn1.weight"])
    assert torch.equal(ours.state_dict()["fc.weight"], before["fc.weight"])


def test_half_missing_gates_are_not_plain_checkpoint(tmp_path: Path) -> None:
    weights = {n: t for n, t in tiny("gct").state_dict().items() if not n.startswith("layer4.0.conv1.gct")}
    with pytest.raises(GatewiseError, match=r"missing \(3\): layer4.0.conv1.gct.alpha"):
        gw.load_weights(tiny("gct"), written(weights, tmp_path / "half.pth"))


class _Shell:
    """What a malicious pickle does when it is opened: it calls anything."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    content = {"state_dict": {"fc.weight": torch.zeros(1)}, "meta": _Shell(marker)}
    file = written(content, tmp_path / "evil.pth")
    with pytest.raises(GatewiseError, match="was not opened: its pickle contains more than tensors"):
        gw.load_weights(tiny("gct"), file)
    assert not marker.exists()
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(_Shell(marker)))
    with pytest.raises(GatewiseError):
        gw.load_weights(tiny("gct"), tmp_path / "plain.pkl")
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the pickle does execute code
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no pickle at all", pickle.dumps([1, 2])])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_without_weights_rejected(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GatewiseError, match=name):
        gw.load_weights(tiny("gct"), tmp_path / name)


def test_damaged_zip_rejected(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(tiny("gct").state_dict(), buffer)
    for length in (10, 1000, len(buffer.getvalue()) // 2):
        (tmp_path / "cut.pth").write_bytes(buffer.getvalue()[:length])
        with pytest.raises(GatewiseError, match=r"cut\.pth"):
            gw.load_weights(tiny("gct"), tmp_path / "cut.pth")


def test_wrong_arguments_rejected(tmp_path: Path) -> None:
    file = written({}, tmp_path / "empty.pth")
    with pytest.raises(GatewiseError, match="has no named tensors"):
        gw.load_weights(tiny("gct"), file)
    with pytest.raises(GatewiseError, match=r"unknown source 'mmvc'.*Did you mean 'mmcv'"):
        gw.load_weights(tiny("gct"), file, source="mmvc")
    with pytest.raises(TypeError, match=r"expects a network \(torch.nn.Module\)"):
        gw.load_weights("resnet", file)  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(GatewiseError, match="nowhere"):
        gw.load_weights(tiny("gct"), tmp_path / "nowhere.pth")
    with pytest.raises(GatewiseError, match=r"has no model\.safetensors"):
        gw.load_weights(tiny("gct"), tmp_path)


def test_every_layout_is_listed_and_detected() -> None:
    assert ("auto", "gatewise", *LAYOUTS) == SOURCES
    names = {
        "gct": "layer1.0.conv1.0.alpha",
        "mmcv": "backbone.layer2.0.context_block.conv_mask.weight",
        "timm": "layer1.0.se.fc1.weight",
        "triplet": "layer1.0.triplet_attention.cw.conv.conv.weight",
        "gaternet": "gater_state_dict.fnn.fc.0.weight",
    }
    for source, name in names.items():
        assert [layout.name for layout in LAYOUTS.values() if layout.recognises([name])] == [source]
