"""Checkpoints: written completely or not at all, read back bitwise, rejected if damaged, never unpickled."""

import copy
import functools
import hashlib
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm import create_model
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import gatewise as gw
from gatewise.core.files import read_json, write_atomically, write_json
from gatewise.errors import DataError, InvalidTypeError
from gatewise.gates.spec import ModelSpec
from gatewise.models.serialization import load_model, save_model
from gatewise.models.stored_spec import abridged
from gatewise.training.checkpoint import load_state, save_state

SPEC = ModelSpec.parse("resnet18_cifar:width=8+gct:mode=l1,eps=0.001@inner+se:rd_ratio=0.25@stage_end")
DETAILS = {"num_classes": 7, "in_chans": 1, "classes": list("abcdefg")}


def randomised(model: nn.Module) -> nn.Module:
    """Return the model with every parameter and statistic changed from its initial value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    return model


@functools.cache
def model_of_spec() -> nn.Module:
    return randomised(gw.make_model(SPEC, num_classes=7, in_chans=1, seed=0))


def make() -> nn.Module:
    """Return a new copy of the same model at every call."""
    return copy.deepcopy(model_of_spec())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether both hold the same names, types and bits."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the folder of a saved model."""
    save_model(tmp_path / "run", make(), SPEC, DETAILS)
    return tmp_path / "run"


@pytest.fixture
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all unpickling fail, after numba has read its cache of compiled kernels."""
    gw.make_gate("gct", 2)(torch.ones(1, 2, 3, 3)).sum().backward()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, fail)


def fail_to_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


# Single files


@pytest.mark.parametrize("content", [b"\x00\xff", "text with \u00e9"])
def test_atomic_write_stores_content_and_makes_folder(tmp_path: Path, content: bytes | str) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", content)
    assert (tmp_path / "a/b/file").read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [file.name for file in (tmp_path / "a/b").iterdir()] == ["file"]


def test_failed_write_keeps_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", "old")
    fail_to_flush(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_failed_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_flush(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_disk_before_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", "old")
    flushed = []

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):  # the folder comes last
            assert (tmp_path / "file").read_text() == "old"
            flushed.append(found.st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "file", "newer")
    assert flushed == [5]
    assert (tmp_path / "file").read_text() == "newer"


def test_json_round_trip(tmp_path: Path) -> None:
    values = {"a": [1, 2.5, None], "b": {"c": "d"}, "third": 1 / 3}
    write_json(tmp_path / "file.json", values)
    assert read_json(tmp_path / "file.json") == values


def test_json_rejects_nonfinite_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_file_not_json_rejected_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")
    with pytest.raises(DataError, match=r"other\.json does not exist"):
        read_json(tmp_path / "other.json")


# Models


def test_model_round_trip_is_bitwise(saved: Path, no_unpickling: None) -> None:
    model, config = load_model(saved)
    assert equal(model.state_dict(), make().state_dict())
    assert abridged(ModelSpec.from_dict(config["spec"])) == SPEC
    assert {key: config[key] for key in DETAILS} == DETAILS


def test_model_round_trip_keeps_gates_options_and_places(saved: Path) -> None:
    model, _ = load_model(saved)
    gates = gw.gates_in(model)
    assert list(gates) == list(gw.gates_in(make()))
    kinds = {type(gate).__name__ for gate in gates.values()}
    assert kinds == {"GatedChannelTransform", "SqueezeExcite"}
    assert {(g.mode, g.eps) for g in gates.values() if isinstance(g, gw.GatedChannelTransform)} == {("l1", 0.001)}
    assert [g.fc1.out_channels for g in gates.values() if isinstance(g, gw.SqueezeExcite)] == [2, 4, 8, 16]


def test_loaded_model_is_in_eval_mode_with_same_output(saved: Path) -> None:
    model, _ = load_model(saved)
    x = torch.randn(2, 1, 8, 8)
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(x), make().eval()(x))


def test_saving_keeps_mode_of_model(tmp_path: Path) -> None:
    model = make().train()
    save_model(tmp_path, model, SPEC, DETAILS)
    assert all(module.training for module in model.modules())


def test_weights_are_safetensors_with_names_of_model(saved: Path) -> None:
    assert equal(load_file(saved / "model.safetensors"), make().state_dict())


def test_config_records_checksum_of_weights(saved: Path) -> None:
    checksum = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((saved / "config.json").read_text())["sha256"] == checksum


@pytest.mark.parametrize("position", [0, 9, -1])
def test_flipped_bit_rejected_with_file_and_both_checksums(saved: Path, position: int) -> None:
    content = bytearray((saved / "model.safetensors").read_bytes())
    before = hashlib.sha256(content).hexdigest()
    content[position] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors is damaged") as caught:
        load_model(saved)
    for checksum in (before, hashlib.sha256(content).hexdigest()):
        assert checksum[:12] in str(caught.value)


def change_config(folder: Path, **changes: object) -> None:
    """Overwrite entries of the config; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "expected 000000000000"),
        ({"sha256": None}, r"config\.json.*sha256"),
        ({"spec": None}, r"config\.json.*spec"),
        ({"spec": {"model": "resnet20", "gates": []}}, r"model\.safetensors.*config\.json"),
        ({"num_classes": 8}, r"model\.safetensors.*config\.json"),
    ],
)
def test_config_of_other_weights_rejected(saved: Path, changes: dict, message: str) -> None:
    change_config(saved, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


def test_file_without_tensors_rejected(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"nothing")
    change_config(saved, sha256=hashlib.sha256(b"nothing").hexdigest())
    with pytest.raises(DataError, match=r"model\.safetensors is not a valid safetensors file"):
        load_model(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_missing_file_rejected_with_its_name(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(DataError, match=rf"{name}'? does not exist|is not a run folder: it has no {name}"):
        load_model(saved)


def test_pretrained_network_is_rebuilt_without_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def create(*args: object, **options: object) -> nn.Module:
        asked.append(options.get("pretrained"))
        return create_model(*args, **options)

    monkeypatch.setattr("timm.create_model", create)
    spec = ModelSpec("resnet18", {"pretrained": True})
    save_model(tmp_path, gw.make_model("resnet18", num_classes=3), spec, {"num_classes": 3})
    _, config = load_model(tmp_path)
    assert config["spec"]["model_options"] == {"pretrained": True}
    assert len(asked) == 2
    assert not any(asked)


def test_missing_run_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere' does not exist"):
        load_model(tmp_path / "nowhere")


# Training states


def timm(net: nn.Module, name: str) -> torch.optim.Optimizer:
    return create_optimizer_v2(gw.parameter_groups(net, 0.01), opt=name, lr=0.01, momentum=0.9)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda net: torch.optim.SGD(gw.parameter_groups(net, 0.01), lr=0.1, momentum=0.9, nesterov=True),
    "sgd without momentum": lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    "adamw": lambda net: torch.optim.AdamW(gw.parameter_groups(net, 0.01), lr=0.01, betas=(0.7, 0.95)),
    "adam with amsgrad": lambda net: torch.optim.Adam(net.parameters(), lr=0.01, amsgrad=True),
    "adabelief, which counts in plain numbers": lambda net: timm(net, "adabelief"),
    "lamb, whose groups hold tensors": lambda net: timm(net, "lamb"),
    "adafactorbv, whose groups hold a type": lambda net: timm(net, "adafactorbv"),
    "lookahead": lambda net: timm(net, "lookahead_sgd"),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), lr=0.01, momentum=0.5, centered=True),
}


def start(name: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a small gated network and its optimizer."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3))
    gw.insert_gates(net, "gct")
    return net, OPTIMIZERS[name](net)


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_state_round_trip_resumes_exactly(tmp_path: Path, name: str, no_unpickling: None) -> None:
    uninterrupted = start(name)
    steps(*uninterrupted, 0, 8)
    interrupted = start(name)
    steps(*interrupted, 0, 4)
    net, optimizer = interrupted
    save_state(tmp_path / "state", {"model": net}, optimizer, {"epochs": 4, "note": "x"})
    resumed = start(name, seed=5)
    steps(*resumed, 0, 1)
    net, optimizer = resumed
    assert load_state(tmp_path / "state", {"model": net}, optimizer) == {"epochs": 4, "note": "x"}
    steps(*resumed, 4, 8)
    assert equal(resumed[0].state_dict(), uninterrupted[0].state_dict())


def test_optimizer_groups_round_trip(tmp_path: Path) -> None:
    net, optimizer = start("adamw")
    steps(net, optimizer, 0, 2)
    save_state(tmp_path / "state", {"model": net}, optimizer, {})
    other = start("adamw")
    for group in other[1].param_groups:
        group["lr"], group["weight_decay"] = 7.0, 7.0
    load_state(tmp_path / "state", {"model": other[0]}, other[1])
    settings = [(group["lr"], group["weight_decay"], tuple(group["betas"])) for group in other[1].param_groups]
    assert settings == [(0.02, 0.01, (0.7, 0.95)), (0.02, 0.0, (0.7, 0.95))]


def test_unsavable_optimizer_state_rejected_with_its_name(tmp_path: Path) -> None:
    net, optimizer = start("sgd")
    steps(net, optimizer, 0, 1)
    optimizer.state[net[0].weight]["factors"] = [torch.ones(2)]
    with pytest.raises(
        InvalidTypeError, match="cannot save 'factors' of SGD: expected a tensor, a number or text, got list"
    ):
        save_state(tmp_path / "state", {"model": net}, optimizer, {})
    assert not (tmp_path / "state").exists()


def test_shared_weights_can_be_saved(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    net, other = randomised(tied()), tied()
    save_state(tmp_path / "state", {"model": net}, torch.optim.SGD(net.parameters()), {})
    load_state(tmp_path / "state", {"model": other}, torch.optim.SGD(other.parameters()))
    assert equal(other.state_dict(), net.state_dict())
    assert other[1].weight is other[0].weight


def test_damaged_state_rejected_with_its_name(tmp_path: Path) -> None:
    net, optimizer = start("sgd")
    save_state(tmp_path / "state", {"model": net}, optimizer, {})
    content = bytearray((tmp_path / "state/state.safetensors").read_bytes())
    content[-1] ^= 128
    (tmp_path / "state/state.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"state\.safetensors is damaged"):
        load_state(tmp_path / "state", {"model": net}, optimizer)


def test_state_replaces_older_one(tmp_path: Path) -> None:
    net, optimizer = start("sgd")
    for epochs in (1, 2):
        save_state(tmp_path / "state", {"model": net}, optimizer, {"epochs": epochs})
    assert load_state(tmp_path / "state", {"model": net}, optimizer) == {"epochs": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_failed_state_write_keeps_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer = start("sgd")
    save_state(tmp_path / "state", {"model": net}, optimizer, {"epochs": 1})
    with monkeypatch.context() as patch:
        fail_to_flush(patch)
        for name in ("state", "other"):
            with pytest.raises(OSError, match="No space left"):
                save_state(tmp_path / name, {"model": net}, optimizer, {"epochs": 2})
    assert load_state(tmp_path / "state", {"model": net}, optimizer) == {"epochs": 1}
    assert not (tmp_path / "other").exists()
