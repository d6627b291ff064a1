"""`import gatewise` loads nothing, its public names exist, and the command line names missing packages."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gatewise as gw
from support.fresh import python
from support.project import ROOT

HEAVY = (
    "lightning",
    "transformers",
    "timm",
    "torchvision",
    "matplotlib",
    "accelerate",
    "scipy",
    "sklearn",
    "rich",
    "cyclopts",
)


def packages_behind(code: str) -> set[str]:
    """Return which packages a fresh process has loaded after some code."""
    result = python("-c", f"{code}; import sys; print('', *sorted({{name.partition('.')[0] for name in sys.modules}}))")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


FRESH = """
import importlib, json, pkgutil, sys
import gatewise as gw

gw.insert_gates, gw.GaterNet, gw.load_weights, gw.load_model  # names are imported on first use
found = {"loaded": sorted({name.partition(".")[0] for name in sys.modules})}
found["files"] = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "gatewise"]
found["statistics"] = [gw.analysis.GateStats.__name__, gw.analysis.GateRecorder.__name__]
exec(f"from gatewise import {', '.join(gw.__all__)}")
before = {name: getattr(gw, name) for name in gw.__all__}
for module in pkgutil.walk_packages(gw.__path__, "gatewise."):
    if not module.name.endswith(".__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name == "triton", error
        except gw.errors.MissingExtraError:
            assert module.name.startswith("gatewise.integrations."), module.name
found["replaced"] = [name for name, value in before.items() if getattr(gw, name) is not value]
found["modules"] = sorted(name for name in sys.modules if name.startswith("gatewise."))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, list[str]]:
    """Return what a fresh process finds: packages that `import gatewise` loads, public names, then all modules."""
    result = python("-c", FRESH)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_import_needs_only_the_core_dependencies(fresh: dict[str, list[str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", line)[0].replace("pyyaml", "yaml") for line in project["dependencies"]}
    imported: set[str] = set()
    for file in fresh["files"]:
        for node in ast.parse(Path(file).read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert "torch" in imported
    assert imported - sys.stdlib_module_names - {"gatewise"} <= declared


def test_import_alone_loads_no_torch() -> None:
    """In a process of its own: those of `python` are forks of one that has torch."""
    code = """
import sys, gatewise
from gatewise import errors
print({"torch", "numpy"} & set(sys.modules), gatewise.inference.InferenceNet.__name__, "torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set() InferenceNet True\n"


def test_import_loads_no_heavy_packages(fresh: dict[str, list[str]]) -> None:
    assert "torch" in fresh["loaded"]
    assert not set(HEAVY) & set(fresh["loaded"])


def test_cli_loads_heavy_packages_only_for_commands_that_need_them() -> None:
    assert not {"torchmetrics", "torchvision", "timm", "matplotlib", "scipy"} & packages_behind(
        "from gatewise.cli import run; run(['gates'])"
    )


def test_public_names_equal_documented_names() -> None:
    contract = """
        gate_names make_gate gate_spec register_gate Gate functional analysis errors data insert_gates gates_in
        parameter_groups train_only_gates train_everything gate_loss make_model make_segmenter GaterNet compact
        skip_closed_filters load_weights optimize_for_inference load_model GatewiseError ModelSpec compare train Recipe
    """
    assert set(contract.split()) <= set(gw.__all__)
    assert sorted(gw.__all__) == sorted(set(gw.__all__))
    assert set(gw.__all__) <= set(dir(gw))
    for name in gw.__all__:
        assert getattr(gw, name) is not None


def test_public_gate_classes_equal_registry() -> None:
    tree = ast.parse(Path(gw.__file__).with_suffix(".pyi").read_text())
    modules = {node.module: node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    listed = {
        (f"gatewise.{module}", alias.name)
        for module, node in modules.items()
        for alias in node.names
        if module.startswith("gates.") and module not in {"gates.registry", "gates.spec"}
    }
    gates = [gw.gate_spec(name).gate for name in gw.gate_names()]
    shipped = {(gate.__module__, gate.__name__) for gate in gates if gate.__module__.startswith("gatewise.gates.")}
    assert listed == shipped
    assert {name for _, name in shipped} <= set(gw.__all__)


def test_public_names_can_be_imported_and_no_module_shadows_them(fresh: dict[str, list[str]]) -> None:
    assert fresh["replaced"] == []
    assert len(fresh["modules"]) > 100
    functions = {name for name in gw.__all__ if inspect.isroutine(getattr(gw, name))}
    functions |= {"explain", "export", "bench", "judge", "check", "predict", "evaluate", "demo"}  # and of commands
    assert not [name for name in fresh["modules"] if name.rpartition(".")[2] in functions]


def test_gate_statistics_are_public(fresh: dict[str, list[str]]) -> None:
    assert fresh["statistics"] == ["GateStats", "GateRecorder"]
    with pytest.raises(AttributeError, match="no attribute 'GateStat'"):
        gw.analysis.GateStat  # noqa: B018


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'GatedChanelTransform'"):
        gw.GatedChanelTransform  # noqa: B018


NO_GPU = """
import logging, sys, torch
torch.version.cuda, torch.cuda._is_compiled, torch.cuda.is_available = "13.0", lambda: True, lambda: False
import gatewise
from gatewise.graph.measure import interleaved_latency
interleaved_latency({"a": lambda: None}, rounds=2, seconds_per_turn=1e-9)
assert "torch.utils.cpp_extension" in sys.modules
logging.getLogger("torch.utils.cpp_extension").warning("another message")
logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, says the user's own code")
"""


def test_cuda_toolkit_message_is_hidden_and_others_are_kept(tmp_path: Path) -> None:
    """The import of torch's timer logs it, which every comparison and benchmark does."""
    environment = {**os.environ, "CUDA_HOME": str(tmp_path)}
    command = [sys.executable, "-c", NO_GPU]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    heard = [line.partition("] ")[2] or line for line in result.stderr.splitlines()]
    assert heard == ["another message", "No CUDA runtime is found, says the user's own code"]


BLOCK = """
import runpy, sys

blocked, arguments = sys.argv[1].split(","), sys.argv[2:]

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["gatewise", *arguments]
runpy.run_module("gatewise", run_name="__main__")
"""


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_cli_without_packages_says_how_to_install(missing: str) -> None:
    result = python("-c", BLOCK, missing, "gates")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"gatewise: the command line needs {missing!r}: pip install 'gatewise[train]'\n"


def test_library_works_without_extra_packages() -> None:
    code = BLOCK.replace(
        'runpy.run_module("gatewise", run_name="__main__")',
        "import torch, gatewise as gw\n"
        "model = gw.make_model('resnet20+gct')\n"
        "print(len(gw.gates_in(model)), tuple(model(torch.zeros(1, 3, 8, 8)).shape))",
    )
    result = python("-c", code, ",".join(HEAVY))
    assert result.stderr == ""
    assert result.stdout == "21 (1, 10)\n"


OPTIONAL = (
    *HEAVY,
    *("PIL", "datasets", "huggingface_hub", "imagecorruptions", "jinja2", "numba", "onnx", "onnxruntime", "onnxscript"),
    *("pyarrow", "ray", "tensorboard", "tifffile", "torchmetrics"),
)
NAMED = {  # what needs a package of an extra, and the extra that the error names
    "gw.train(gw.Recipe(), 'run')": "train",
    "gw.compare(gw.Recipe(), [()], 1, 'comparison')": "train",
    "gw.judge('scores.csv', out='judged')": "train",
    "gw.explain(net, [x], 'page.html')": "train",
    "gw.analysis.GateStats(net)": "train",
    "gw.make_model('resnet18')": "train",
    "gw.data.load_dataset('pictures')": "train",
    "gw.data.load_dataset('digits')": "train",
    "list(gw.predict(net, ['a.png'], classes=['a'], mean=[0] * 3, std=[1] * 3, image_size=[8, 8]))": "train",
    "__import__('gatewise.integrations.timm')": "train",
    "gw.export(net, 'net.onnx', example=x)": "export",
    "gw.PretrainedNet": "hub",
    "gw.data.load_dataset('hub:mnist')": "hub",
    "gw.data.corruptions.corrupted(x[0], 'fog', 1, 0)": "corruptions",
    "gw.make_gate('gct', 8, backend='fused')(torch.zeros(1, 8, 4, 4))": "fast",
}
CALL = """
import json, re, sys, torch
from pathlib import Path
calls, missing = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(missing))
import gatewise as gw
net = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
x = torch.zeros(2, 3, 8, 8)
gw.insert_gates(net, "gct", example=x)
Path("scores.csv").write_text("variant,seed,score\\nnone,0,1\\nnone,1,2\\ngct,0,2\\ngct,1,4\\n")
Path("a.png").write_bytes(b"png")
for name in ("a/1", "a/2", "b/1", "b/2"):
    Path("pictures", name).parent.mkdir(parents=True, exist_ok=True)
    Path("pictures", f"{name}.png").write_bytes(name.encode())
found = {}
for call in calls:
    try:
        eval(call)
    except gw.GatewiseError as error:
        found[call] = re.findall(r"pip install 'gatewise\\[(\\w+)\\]'", str(error)) or str(error)
print(json.dumps(found))
"""


def test_each_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    result = python("-c", CALL, json.dumps([*NAMED]), json.dumps(OPTIONAL), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {call: [extra] for call, extra in NAMED.items()}


def test_missing_training_package_is_one_line(tmp_path: Path) -> None:
    result = python("-c", BLOCK, "accelerate", "train", "--epochs", "1", "--out", str(tmp_path / "run"))
    assert result.returncode == 2
    what, how = "training needs the package 'accelerate', which is not installed", "pip install 'gatewise[train]'"
    assert result.stderr == f"gatewise: {what}. Install it with: {how}\n"


ALONE = {  # what one public name finds in a registry that a package above fills
    "place": "gw.GateChoice.parse('gct@inner')",
    "gate": "gw.make_gate('triplet', 8)",
    "gater": (
        "gw.GaterNet(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), gater='resnet20', "
        "image_size=(8, 8))"
    ),
    "network": "gw.ModelSpec.parse('resnet20+se@residual_end+gaternet:gater=resnet20')",
}


@pytest.mark.parametrize("kind", ALONE)
def test_registry_is_full_for_one_name_alone(kind: str) -> None:
    result = python("-c", f"import gatewise as gw; from torch import nn; {ALONE[kind]}")
    assert result.returncode == 0, result.stderr
