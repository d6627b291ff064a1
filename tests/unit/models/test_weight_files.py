"""Files of anyone's networks load: own files, any prefix, and files of trainers with other objects in them."""

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import math
import pathlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import gatewise as gw
from gatewise import GatewiseError
from gatewise.data import load_dataset
from gatewise.gates.registry import gate_names
from gatewise.gates.spec import ModelSpec
from gatewise.models.weights.prefixes import Prefix, prefixes
from gatewise.models.weights.transfer import has_segmentation_head, load_backbone
from gatewise.training.initial import load_initial
from support.foreign import shaken

TINY = "resnet20_wider:parameters=3000"


class Net(nn.Module):
    """Two convolutions, in modules whose names contain those of wrappers."""

    def __init__(self) -> None:
        super().__init__()
        self.context_module, self.submodule = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU()), nn.Conv2d(6, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.submodule(self.context_module(x)))


class Around(nn.Module):
    """A network of the user around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def gated(gate: str = "gct") -> Net:
    net = Net()
    gw.insert_gates(net, gate)
    return net


def saved(content: Any, file: Path, **options: Any) -> Path:
    torch.save(content, file, **options)
    return file


def with_prefix(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def has_weights_of(net: nn.Module, plain: nn.Module) -> bool:
    own = net.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in plain.state_dict().items())


# Own files


def by_load_weights(net: nn.Module, spec: str, folder: Path) -> nn.Module:
    fresh = gw.make_model(spec)
    loaded = gw.load_weights(fresh, saved(net.state_dict(), folder / "own.pt"))
    assert (loaded.source, loaded.kept, loaded.left_out, loaded.notes) == ("gatewise", (), (), ())
    return fresh


def by_init(net: nn.Module, spec: str, folder: Path) -> nn.Module:
    fresh = gw.make_model(spec)
    save_file(net.state_dict(), folder / "own.safetensors")
    load_initial(fresh, ModelSpec.parse(spec), load_dataset("digits"), str(folder / "own.safetensors"))
    return fresh


def by_hub(net: nn.Module, spec: str, folder: Path) -> nn.Module:
    from gatewise.exporting.hub import PretrainedNet

    PretrainedNet(net, spec).save_pretrained(folder / "hub")
    return PretrainedNet.from_pretrained(folder / "hub").network


@pytest.mark.situation("the file of a network with gates loads into the same network")
@pytest.mark.parametrize(
    "path",
    [by_load_weights, *(pytest.param(path, marks=pytest.mark.slow) for path in (by_init, by_hub))],
    ids=lambda path: path.__name__[3:],
)
@pytest.mark.parametrize("gate", gate_names())
def test_own_file_loads(tmp_path: Path, gate: str, path: Callable[[nn.Module, str, Path], nn.Module]) -> None:
    trained = shaken(gw.make_model(f"{TINY}+{gate}"))
    assert has_weights_of(path(trained, f"{TINY}+{gate}", tmp_path), trained)


def with_attention(layer: str) -> nn.Module:
    options = {"num_classes": 3, "block_args": {"attn_layer": layer}}
    return timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), **options)


@pytest.mark.extended
@pytest.mark.situation("a network that has attention modules of its own loads its own file")
@pytest.mark.parametrize(
    ("layer", "gate"),
    [
        *(("se", "se"), ("se", "gct"), ("eca", "eca"), ("gc", "gc"), ("gca", "se"), ("nl", "nl")),
        ("mobilenetv3_small_050", "se"),
    ],
)
def test_own_attention_modules_load(tmp_path: Path, layer: str, gate: str) -> None:
    make = functools.partial(timm.create_model, layer, num_classes=3) if "_" in layer else lambda: with_attention(layer)
    plain, net, other = shaken(make()), make(), make()
    for one in (net, other):
        gw.insert_gates(one, gate, example=torch.zeros(2, 3, 32, 32))
    loaded = gw.load_weights(net, saved(plain.state_dict(), tmp_path / "plain.pt"))
    assert (loaded.source, loaded.left_out) == ("gatewise", ())
    assert has_weights_of(net, plain)
    shaken(net)
    assert gw.load_weights(other, saved(net.state_dict(), tmp_path / "gated.pt")).source == "gatewise"
    assert has_weights_of(other, net)


@pytest.mark.situation("a segmenter starts from a classifier's file of any trainer")
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "backbone."], ids=["no prefix", "module.", "model.", "backbone."]
)
def test_segmenter_starts_from_any_file(tmp_path: Path, prefix: str) -> None:
    net = gw.make_segmenter("resnet10t", num_classes=3)
    plain = shaken(timm.create_model("resnet10t", num_classes=5))
    content = {"state_dict": with_prefix(prefix, plain.state_dict()), "args": argparse.Namespace()}
    file = saved(content, tmp_path / "c.ckpt")
    assert not has_segmentation_head(file)
    load_backbone(net, file)
    assert torch.equal(net.backbone.conv1[0].weight, plain.conv1[0].weight)  # type: ignore[index,union-attr]
    assert has_segmentation_head(saved({"state_dict": with_prefix(prefix, net.state_dict())}, file))


# Prefixes

PREFIXES = (
    *("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "student.", "ema_model.", "ema.module."),
    *("model._orig_mod.", "_forward_module.", "network.module.", "a.b.c.", "generator."),
)


@pytest.mark.situation("a prefix before all names in a file is removed, and said")
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefix_is_removed(tmp_path: Path, prefix: str) -> None:
    plain, net = shaken(Net()), gated()
    loaded = gw.load_weights(net, saved(with_prefix(prefix, plain.state_dict()), tmp_path / "w.pt"))
    assert has_weights_of(net, plain)
    said = prefix.replace("_orig_mod.", "")
    assert not said or f"the prefix {said!r} was removed" in str(loaded)
    assert loaded.left_out == ()


@pytest.mark.situation("a network inside a module loads the file of the plain network")
@pytest.mark.parametrize("prefix", ["", "module.", "student."], ids=["no prefix", "module.", "student."])
def test_prefix_of_network_is_added(tmp_path: Path, prefix: str) -> None:
    plain = shaken(Net())
    net = Around(Around(Net()))
    gw.insert_gates(net, "gct")
    loaded = gw.load_weights(net, saved(with_prefix(prefix, plain.state_dict()), tmp_path / "w.pt"))
    assert has_weights_of(net.model.model, plain)  # type: ignore[arg-type]
    assert "the network's own prefix 'model.model.' was added" in loaded.notes
    assert "model.model.bn.weight" in loaded.filled


@pytest.mark.situation("a network that a wrapper of torch contains loads the file of the plain network")
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["torch.compile", "DataParallel"])
def test_wrapped_network_loads_plain_file(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, net = shaken(Net()), gated()
    gw.load_weights(wrap(net), saved(plain.state_dict(), tmp_path / "w.pt"))
    assert has_weights_of(net, plain)


@pytest.mark.situation("only the network is taken from a file that has other networks and losses next to it")
@pytest.mark.parametrize("copy", ["teacher.", "ema_model.module.", "model_ema.", "momentum_encoder.", "encoder_k."])
def test_copies_are_left_out(tmp_path: Path, copy: str) -> None:
    plain, other, net = shaken(Net()), shaken(Net(), seed=5), gated()
    weights = with_prefix(copy, other.state_dict()) | with_prefix("model.", plain.state_dict())
    weights["criterion.weight"] = torch.ones(4)
    file = saved({"state_dict": weights, "pytorch-lightning_version": "2.5"}, tmp_path / "l.ckpt")
    loaded = gw.load_weights(net, file)
    assert has_weights_of(net, plain)
    assert set(loaded.left_out) == {name for name in weights if not name.startswith("model.")}
    gw.load_weights(net, file, prefix=copy)
    assert has_weights_of(net, other)


@pytest.mark.situation("a trainer's file with the weights under any key loads")
@pytest.mark.parametrize("key", ["network_weights", "model_state", "params", "weights", "G", "ema", "state_dict_ema"])
def test_weights_under_any_key(tmp_path: Path, key: str) -> None:
    plain, net = shaken(Net()), gated()
    optimizer = torch.optim.Adam(plain.parameters())
    plain(torch.zeros(2, 3, 2, 2)).sum().backward()
    optimizer.step()
    content = {key: plain.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    loaded = gw.load_weights(net, saved(content, tmp_path / "w.pt"))
    assert has_weights_of(net, plain)
    assert loaded.left_out == ()


@pytest.mark.situation("a trainer's file with the weights of each part of the network under a key loads")
def test_weights_of_each_part_under_a_key(tmp_path: Path) -> None:
    plain, net = shaken(Around(Net())), Around(gated())
    plain.head, net.head = shaken(nn.Conv2d(4, 2, 1), seed=1), nn.Conv2d(4, 2, 1)
    content = {"model": plain.model.state_dict(), "head": plain.head.state_dict(), "epoch": 3}
    loaded = gw.load_weights(net, saved(content, tmp_path / "parts.pt"))
    assert has_weights_of(net, plain)
    assert loaded.left_out == ()


def test_several_networks_need_a_choice(tmp_path: Path) -> None:
    first, second, net = shaken(Net()), shaken(Net(), seed=5), gated()
    weights = with_prefix("left.", first.state_dict()) | with_prefix("right.", second.state_dict())
    file = saved(weights, tmp_path / "two.pt")
    with pytest.raises(GatewiseError, match=r"several networks that fit: their names begin with 'left\.', 'right\.'"):
        gw.load_weights(net, file)
    gw.load_weights(net, file, prefix="right.")
    assert has_weights_of(net, second)
    with pytest.raises(GatewiseError, match=r"no name begins with prefix='up\.'.*'left', 'right'"):
        gw.load_weights(net, file, prefix="up.")


def test_file_of_another_network_is_rejected(tmp_path: Path) -> None:
    file = saved({"vgg.0.kernel": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(GatewiseError, match=r"missing \(8\).*unexpected \(1\): vgg\.0\.kernel"):
        gw.load_weights(gated(), file)
    with pytest.raises(GatewiseError, match="none of its 1 tensors is one of the network's"):
        gw.load_weights(gated(), file, strict=False)


class Parts(nn.Module):
    """A network of two parts, of which one may be in DataParallel."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.encoder, self.head = wrap(Net()), nn.Conv2d(4, 2, 1)


@pytest.mark.situation("the file of a network with a part in a wrapper of torch loads into the plain network")
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "torch.compile"])
@pytest.mark.parametrize("prefix", ["", "model."], ids=["no prefix", "model."])
def test_wrapped_part_of_a_network(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module], prefix: str) -> None:
    trained, net = shaken(Parts(wrap)), Parts(lambda part: part)
    weights = with_prefix(prefix, trained.state_dict())
    loaded = gw.load_weights(net, saved(weights, tmp_path / "w.pt"))
    assert all(torch.equal(*pair) for pair in zip(net.state_dict().values(), weights.values(), strict=True))
    assert ("'module.' was removed inside names" in loaded.notes) == (wrap is nn.DataParallel)


def test_prefixes_are_whole_components() -> None:
    names = [f"model.{name}" for name in Net().state_dict()]
    assert [prefix.removed for prefix in prefixes(names, list(Net().state_dict()))][:2] == ["", "model."]
    assert Prefix("model.").own("submodel.bn.weight") is None
    assert Prefix(without_parallel=True).own("context_module.module.0.weight") == "context_module.0.weight"


# Other objects in files of trainers


class Stage(enum.Enum):
    WARM = "warm"


@dataclasses.dataclass
class Options:
    lr: float
    stages: list[Stage]


class Config(dict):  # type: ignore[type-arg]
    """A dictionary with attributes, as yacs, addict and Lightning have."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class History:
    """A buffer of scalars, as mmengine's."""

    def __init__(self) -> None:
        self.values, self.functions = np.array([(0.5, 1), (0.4, 2)]), {"mean": np.mean, "max": max}


class Words(list):  # type: ignore[type-arg]
    pass


Point = collections.namedtuple("Point", "x y")
EXTRAS: dict[str, Callable[[], Any]] = {
    "argparse.Namespace": lambda: argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
    "numpy scalars": lambda: {"best": np.float64(0.9), "epoch": np.int64(3)},
    "numpy arrays": lambda: np.arange(6.0).reshape(2, 3),
    "random states": lambda: {"numpy": np.random.get_state(), "python": random.getstate(), "t": torch.get_rng_state()},
    "a history buffer": History,
    "a configuration": lambda: Config(lr=0.1, data=Config(root="photos", sizes=[1, 2])),
    "a defaultdict": lambda: collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "a deque": lambda: collections.deque([0.1, 0.2], maxlen=5),
    "an OrderedDict": lambda: collections.OrderedDict(a=1, b=pathlib.PurePosixPath("runs")),
    "a Counter": lambda: collections.Counter({"cat": 3}),
    "paths": lambda: [Path("runs/a"), pathlib.PureWindowsPath("runs")],
    "an enum": lambda: Stage.WARM,
    "a dataclass": lambda: Options(0.1, [Stage.WARM]),
    "a named tuple": lambda: Point(1, 2),
    "a partial": lambda: functools.partial(math.pow, 2),
    "functions by name": lambda: [len, math.sqrt, History.__init__, torch.relu],
    "classes by name": lambda: [Path, nn.Conv2d, int],
    "a loss": lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
    "an optimizer": lambda: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1),
    "a date": lambda: datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC),
    "a list of its own class": lambda: Words(["cat", "dog"]),
    "sets": lambda: [{1, 2}, frozenset({3})],
    "an exception": lambda: ValueError("loss is nan"),
    "ranges and slices": lambda: [range(3), slice(1, 2), complex(1, 2), b"bytes", 1 << 2100],
}


@pytest.mark.situation("a trainer's file with other objects than tensors loads, and none of them is created")
@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_other_objects_are_left_out(tmp_path: Path, extra: str, *, old_format: bool) -> None:
    plain, net = shaken(Net()), gated()
    content = {"extra": EXTRAS[extra](), "state_dict": plain.state_dict(), "epoch": 1}
    file = saved(content, tmp_path / "m.pth.tar", _use_new_zipfile_serialization=not old_format)
    gw.load_weights(net, file)
    assert has_weights_of(net, plain)


def test_file_of_another_kind_is_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(
        GatewiseError, match=r"net\.onnx is neither a safetensors file nor one of torch\.save\. Give a run"
    ):
        gw.load_weights(gw.make_model("resnet20"), tmp_path / "net.onnx")


def test_left_out_classes_are_said(tmp_path: Path) -> None:
    file = saved({"model": Net().state_dict(), "args": argparse.Namespace(a=1), "p": Path("x")}, tmp_path / "m.pt")
    loaded = gw.load_weights(gated(), file)
    assert loaded.notes == (f"not read, since no tensors: objects of argparse.Namespace, {PATH_CLASS}",)


PATH_CLASS = f"{type(Path()).__module__}.{type(Path()).__qualname__}"


@pytest.mark.situation("a network that was saved as an object gives its weights")
@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(
    "wrap",
    [lambda net: net, nn.DataParallel, lambda net: {"model": net, "epoch": 2}],
    ids=["alone", "in DataParallel", "in a trainer's dictionary"],
)
def test_whole_network_in_file(tmp_path: Path, wrap: Callable[[nn.Module], Any], *, old_format: bool) -> None:
    plain, net = shaken(Net()), gated()
    plain.register_buffer("scratch", torch.ones(2), persistent=False)
    file = saved(wrap(plain), tmp_path / "net.pt", _use_new_zipfile_serialization=not old_format)
    loaded = gw.load_weights(net, file)
    assert has_weights_of(net, plain)
    assert loaded.left_out == ()


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
        *(torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn),
    ],
)
def test_tensors_next_to_objects_are_exact(tmp_path: Path, dtype: torch.dtype, *, old_format: bool) -> None:
    """Views, shared storages, empty tensors and parameters, of every dtype."""
    from gatewise.models.weights.inert_pickle import read_inertly

    base = torch.arange(24).to(dtype).reshape(4, 6)
    tensors = {"all": base, "view": base.t()[1:, ::2], "none": base[:0], "scalar": base[0, 1]}
    if dtype.is_floating_point:
        tensors["parameter"] = nn.Parameter(base[1:3])
    file = saved({"t": tensors, "x": Stage.WARM}, tmp_path / "t.pt", _use_new_zipfile_serialization=not old_format)
    found, others = read_inertly(file.read_bytes())
    assert found["t"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found["t"][name].dtype == dtype
        assert found["t"][name].stride() == tensor.stride()
        raw, expected = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (found["t"][name], tensor))
        assert torch.equal(raw, expected), name
    assert others == (f"{Stage.__module__}.Stage",)


def test_reading_twice_the_same_dictionary_is_quick(tmp_path: Path) -> None:
    """Each dictionary has the one before it twice: 2^60 in all."""
    inner: dict[str, Any] = {"extra": argparse.Namespace()}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    file = saved({"state_dict": Net().state_dict(), "config": inner}, tmp_path / "laughs.pt")
    gw.load_weights(gated(), file)
