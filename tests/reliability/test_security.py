"""The promises of SECURITY.md: nothing in a file is executed, names are text on every page."""

import argparse
import ast
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser

import gatewise as gw
from gatewise.analysis.explanation import explain_runs
from gatewise.comparison import compare
from gatewise.data import Dataset, Images, load_dataset
from gatewise.errors import DataError, InvalidValueError
from gatewise.exporting import details_of
from gatewise.exporting.prediction import Predictor
from gatewise.gates.spec import parse_gates
from gatewise.training import Recipe, train
from support.browser import (
    CHROMIUM,
    browser,  # noqa: F401 - a fixture
    open_file,
)
from support.project import ROOT

SOURCE = ROOT / "src/gatewise"
TINY = "resnet20_wider:parameters=3000"

# Calls that run a program, and why each is needed. A call is named as it is written.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "input", "breakpoint"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.loads"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "pty.spawn"),
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "subprocess.check_call"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.jit.load", "torch.hub.load"),
    *("torch.load", "torch.export.load", "importlib.import_module", "runpy.run_path", "runpy.run_module", "np.load"),
}
ALLOWED = {
    ("core/_validation.py", "importlib.import_module"): "optional_module: every caller names a package in the source",
    ("__init__.py", "importlib.import_module"): "its own packages, when one is first used",
    ("core/registry.py", "importlib.import_module"): "the files of a package whose files register themselves",
    ("comparison/cluster.py", "importlib.import_module"): "its own module, on a machine that may not have it",
    ("comparison/script_runs.py", "subprocess.Popen"): "runs the command that the user gives to compare --command",
    ("integrations/timm/__main__.py", "runpy.run_path"): "runs the script that the user names: that is the command",
    ("gates/kernels/backend.py", "importlib.import_module"): "its own modules of kernels, named in the source",
    ("analysis/__init__.py", "importlib.import_module"): "its own modules, when a name of theirs is asked for",
    ("models/network_functions.py", "importlib.import_module"): "of --model MODULE:FUNCTION, never of a file's text",
    ("models/weights/reading.py", "torch.load"): "weights_only=True",
    ("data/raster.py", "np.load"): "allow_pickle=False",
    ("data/sources/arrays.py", "np.load"): "allow_pickle=False",
    ("exporting/formats/torch_export.py", "torch.export.load"): "of the file that was just written",
}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def calls(file: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def found_calls() -> set[tuple[str, str]]:
    files = [(file, str(file.relative_to(SOURCE))) for file in sorted(SOURCE.rglob("*.py"))]
    return {(name, called(call)) for file, name in files for call in calls(file) if called(call) in FORBIDDEN}


def test_source_runs_only_listed_programs() -> None:
    assert found_calls() == set(ALLOWED)


def test_torch_load_uses_weights_only() -> None:
    for file in SOURCE.rglob("*.py"):
        for call in calls(file):
            if called(call) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("weights_only") == "True", file
            if called(call) == "np.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("allow_pickle") == "False", file
            if called(call) != "app.generate_completion":  # prints a script for a shell
                assert not any(keyword.arg == "shell" for keyword in call.keywords), file
            assert not any(k.arg == "trust_remote_code" for k in call.keywords), file


def test_modules_that_run_programs_are_not_imported() -> None:
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            roots = {name.partition(".")[0] for name in names}
            if "ctypes" in roots:
                assert file.parts[-2:] == ("cpu", "openmp.py"), "only to call torch's own OpenMP library"
            if "subprocess" in roots:
                assert file.name == "script_runs.py", "only to run the command that the user gives"
            assert not roots & {"marshal", "shelve", "dill", "joblib", "pty", "code"}, file
            if "pickle" in roots:
                assert file.name in {"reading.py", "inert_pickle.py"}, (
                    "its exception; and a reader that looks up no name"
                )


@pytest.mark.parametrize("line", ["eval(x)", "os.system(x)", "torch.load(f)", "yaml.load(f)", "subprocess.run(x)"])
def test_source_walk_finds_calls(line: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call))
    assert called(call) in FORBIDDEN


# Code in files is not run


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.canary), "w")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(Recipe(model=TINY, gate="gct@inner", epochs=1, batch_size=32, precision="fp32"), folder, dataset=_few())
    return folder


def _few(classes: tuple[str, ...] | None = None) -> Dataset:
    digits = load_dataset("digits")
    parts = (Images(part.pixels[:64], part.labels[:64]) for part in (digits.train, digits.validation))
    return Dataset("digits", classes or digits.classes, *parts, padding=1, flip=False)


@pytest.mark.parametrize("read", [details_of, Predictor.of])
def test_torch_export_archive_is_not_opened(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    """torch.export.load unpickles or evaluates the content of the archive."""
    canary, file = tmp_path / "executed", tmp_path / "net.pt2"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    program = torch.export.export(torch.nn.Flatten(), (torch.zeros(2, 3),))
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            evil = content.replace(b'"guards_code": []', f'"guards_code": {json.dumps([code])}'.encode())
            archive.writestr(name, pickle.dumps(Evil(canary)) if "sample_inputs" in name else evil)
    with pytest.raises(DataError, match=r"net\.pt2 was not opened: gatewise reads run folders, .*torch\.export\.load"):
        read(file)
    assert not canary.exists()


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_no_spec_option_opens_file(trained: Path, tmp_path: Path, option: str) -> None:
    canary = tmp_path / "executed"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(InvalidValueError, match=rf"has the option {option}=.*a spec must not name a file"):
        gw.make_model(f"resnet10t:{option}={tmp_path / 'evil.pth'}")
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["spec"] = {"model": "resnet10t", "model_options": {option: str(tmp_path / "evil.pth")}}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=option):
        gw.load_model(run)
    assert not canary.exists()


def test_yaml_tags_are_not_followed(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    (tmp_path / "r.yaml").write_text(f"gate: !!python/object/apply:builtins.open ['{canary}', w]\n")
    with pytest.raises(DataError, match="is not valid YAML"):
        Recipe.load(tmp_path / "r.yaml")
    assert not canary.exists()


# Pickles that also hold weights: nothing else in them runs


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


class Restored:
    """Writes a file when its state is restored."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __setstate__(self, state: dict[str, Path]) -> None:
        state["canary"].touch()


def payloads(canary: Path) -> dict[str, tuple[bytes, bool]]:
    """Return parts of pickles that write a file when they run, each with whether its file is rejected."""
    code = text(f"__import__('pathlib').Path({str(canary)!r}).touch()")
    path = call(name("pathlib", "Path"), text(str(canary)))
    evaluated = call(name("builtins", "eval"), code)
    inert = call(name("numpy.testing", "runstring"), code, b"}")  # runs the text, and is known to no list
    stated = name("argparse", "Namespace") + b")\x81}"
    return {
        "os.system": (call(name("posix", "system"), text(f"touch {canary}")), True),
        "subprocess": (call(name("subprocess", "getoutput"), text(f"touch {canary}")), True),
        "eval": (evaluated, True),
        "eval as in Python 2": (call(name("__builtin__", "eval"), code), True),
        "a copied file": (call(name("shutil", "copyfile"), text(__file__), text(str(canary))), True),
        "a method": (call(call(name("builtins", "getattr"), path, text("touch"))), True),
        "a result that is called": (call(call(name("operator", "methodcaller"), text("touch")), path), True),
        "eval in a state": (stated + text("a") + evaluated + b"sb", True),
        "a function on no list": (inert, False),
        "in a state": (stated + text("a") + inert + b"sb", False),
        "in the state of a state": (stated + text("a") + stated + text("b") + inert + b"sbsb", False),
        "in an argument": (call(name("pathlib", "PurePath"), text("a"), call(name("builtins", "str"), inert)), False),
        "as a key": (b"}" + inert + b"Ns", False),
        "by __setstate__": (pickle.dumps(Restored(canary), 2)[2:-1], False),
    }


def with_payload(payload: bytes, old_format: bool) -> bytes:
    """Return a file of torch.save with weights, whose pickle first runs the payload and forgets the result."""
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 3).state_dict(), buffer, _use_new_zipfile_serialization=not old_format)
    if old_format:
        buffer.seek(0)
        for _ in range(3):
            pickle.load(buffer)
        start = buffer.tell() + 2  # after the protocol
        content = buffer.getvalue()
        return content[:start] + payload + b"0" + content[start:]
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(out, "w") as changed:
        for entry in archive.namelist():
            data = archive.read(entry)
            changed.writestr(entry, data[:2] + payload + b"0" + data[2:] if entry.endswith("data.pkl") else data)
    return out.getvalue()


@pytest.mark.situation("a file of weights that also holds a program runs nothing")
@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", payloads(Path()))
def test_pickle_with_weights_runs_nothing(tmp_path: Path, kind: str, *, old_format: bool) -> None:
    canary, file, net = tmp_path / "executed", tmp_path / "w.pt", torch.nn.Linear(2, 3)
    payload, rejected = payloads(canary)[kind]
    file.write_bytes(with_payload(payload, old_format))
    if rejected:
        with pytest.raises(DataError, match=r"w\.pt was not opened: its pickle contains more than tensors"):
            gw.load_weights(net, file)
    else:
        loaded = gw.load_weights(net, file)
        assert "not read, since no tensors: objects of" in str(loaded)
    assert not canary.exists()
    assert torch.load(file, weights_only=False).keys() == net.state_dict().keys()
    assert canary.exists(), "the payload runs where pickles are executed"


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(
    "attribute", [b"argparse\nNamespace", b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict"]
)
def test_pickle_changes_no_class(tmp_path: Path, attribute: bytes, *, old_format: bool) -> None:
    payload = name("argparse", "Namespace") + b"0c" + attribute + b"\nN}" + text("changed") + b"I1\ns\x86b"
    (tmp_path / "w.pt").write_bytes(with_payload(payload, old_format))
    with pytest.raises(DataError, match=r"w\.pt was not opened"):
        gw.load_weights(torch.nn.Linear(2, 3), tmp_path / "w.pt")
    assert not any(hasattr(one, "changed") for one in (argparse.Namespace, torch._utils._rebuild_tensor_v2))


def test_hostile_sizes_are_rejected(tmp_path: Path) -> None:
    """A place in the memory of the unpickler, a tensor outside its storage, and a compressed archive."""
    other = name("argparse", "Namespace") + b"0"
    stored = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x06tQ"
    tensor = call(name("torch._utils", "_rebuild_tensor_v2"), stored, b"K\x00", b"J\xff\xff\xff\x7f\x85", b"K\x01\x85")
    file, net = tmp_path / "w.pt", torch.nn.Linear(2, 3)
    file.write_bytes(with_payload(other + b"Nr\xff\xff\xff\xff", old_format=False))
    gw.load_weights(net, file)  # the place is a key of a dictionary
    content = with_payload(other + b"}" + text("weight") + tensor + b"s.", old_format=False)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"w\.pt was not opened.*out of bounds"):
        gw.load_weights(net, file)
    with zipfile.ZipFile(io.BytesIO(with_payload(other + b"N", old_format=False))) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    with pytest.raises(DataError, match="its archive is compressed"):
        gw.load_weights(net, file)


# Names are text

HOSTILE = "<script>alert(1)</script>"
BROWSER = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


def hostile_data(folder: Path) -> Path:
    """Write tables of images whose classes are called after scripts."""
    import pyarrow as pa
    from pyarrow import parquet

    cells = []
    for index in range(8):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (index % 2 * 90, index * 20, 9)).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    names = {"info": {"features": {"label": {"names": [HOSTILE, "<img src=x onerror=alert(2)>"]}}}}
    table = pa.table({"image": cells, "label": [0, 1] * 4}).replace_schema_metadata({"huggingface": json.dumps(names)})
    folder.mkdir()
    for split in ("train", "val"):
        parquet.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def hostile_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a page and a report about runs whose classes, data and folders are called after scripts."""
    folder = tmp_path_factory.mktemp("pages")
    data = hostile_data(folder / "<b onmouseover=alert(3)>data")
    recipe = Recipe(data=str(data), model=TINY, gate="gct@inner", epochs=1, batch_size=4, precision="fp32")
    run = folder / "<script>alert(4)"
    train(recipe, run)
    pages = {"explain": folder / "page.html", "compare": folder / "all <script>alert(5)" / "report.html"}
    explain_runs([run], pages["explain"])
    compare(recipe, [parse_gates("none"), parse_gates("gct@inner")], 1, pages["compare"].parent)
    return pages


@BROWSER
@pytest.mark.parametrize("kind", ["explain", "compare"])
def test_script_like_names_are_only_text(
    browser: Browser,
    hostile_pages: dict[str, Path],
    kind: str,
) -> None:
    dialogs: list[str] = []
    opened_page = open_file(browser, hostile_pages[kind])
    opened_page.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    opened_page.page.reload()
    for shown in opened_page.page.locator(".tip, details summary, b").all()[:50]:
        shown.dispatch_event("pointerover")
        shown.dispatch_event("mouseover")
    text = opened_page.page.locator("body").inner_text()
    opened_page.page.wait_for_timeout(300)
    assert dialogs == []
    assert opened_page.complaints == []
    assert [url for url in opened_page.requests if not url.startswith(("file:", "data:"))] == []
    assert opened_page.page.locator("img[src='x']").count() == 0
    assert opened_page.page.evaluate("[...document.scripts].every(s => !s.textContent.startsWith('alert'))")
    assert "<b onmouseover=alert(3)>data" in text
    if kind == "explain":
        assert HOSTILE in text + " ".join(opened_page.page.locator("title, output").all_text_contents())
        assert "<script>alert(4)" in text
    opened_page.page.context.close()


def test_hostile_name_writes_only_inside_its_folder(tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for gate in ("gct@../../up", "../gct", "gct:mode=../../up"):
        with pytest.raises(InvalidValueError):
            compare(Recipe(), [parse_gates(gate)], 1, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
