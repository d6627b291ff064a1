"""The types of the public names, as pyright reports them for a user's script."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gatewise as gw

SCRIPT = """
import torch
import gatewise as gw

reveal_type(gw.GatedChannelTransform(64, mode="l1")(torch.zeros(1, 64, 8, 8)))
reveal_type(gw.make_gate("gct", 64))
reveal_type(gw.insert_gates(torch.nn.Conv2d(3, 8, 3), "gct").gates)
reveal_type(gw.compare)
reveal_type(gw.train(gw.Recipe(gate="gct"), "run"))
reveal_type(gw.Recipe().epochs)
reveal_type(gw.errors.InvalidValueError("no"))
reveal_type(gw.analysis.GateStats(torch.nn.Conv2d(3, 8, 3)))
reveal_type(gw.data.load_dataset)
gw.GatedChanelTransform
gw.analysis.GateStat
gw.compare(gates=[])
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """Return what pyright says of two scripts, by line: of every public name, and of a user's calls."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs pyright")
    folder = tmp_path_factory.mktemp("scripts")
    names = "\n".join(f"reveal_type(gw.{name})" for name in gw.__all__)
    scripts = {"names.py": f"import gatewise as gw\n{names}\n", "calls.py": SCRIPT}
    for file, script in scripts.items():
        (folder / file).write_text(script)
    source = Path(gw.__file__).parent.parent
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(source)], "include": list(scripts)}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = json.loads(result.stdout)["generalDiagnostics"]
    return {file: [line for line in found if Path(line["file"]).name == file] for file in scripts}


def test_type_checker_knows_every_public_name(reports: dict[str, list[dict[str, object]]]) -> None:
    found = reports["names.py"]
    assert len(found) == len(gw.__all__)
    assert not [line for line in found if line["severity"] != "information" or "Unknown" in str(line["message"])]


def test_type_checker_knows_calls_of_user_script(reports: dict[str, list[dict[str, object]]]) -> None:
    found = reports["calls.py"]
    revealed = [
        re.findall(r'is "(.*)"$', str(line["message"]))[0] for line in found if line["severity"] == "information"
    ]
    compare = revealed.pop(3)
    assert compare.startswith("(recipe: Recipe, gates: Sequence[")
    load = revealed.pop()
    assert load.endswith("-> Dataset")
    assert revealed == [
        "Tensor",
        "Gate",
        "dict[str, Gate]",
        "dict[str, Any]",
        "int",
        "InvalidValueError",
        "GateStats",
    ]
    wrong = sorted(str(line["message"]) for line in found if line["severity"] == "error")
    assert len(wrong) == 3
    assert wrong[1].startswith('"GatedChanelTransform" is not a known attribute')
    assert wrong[0].startswith('"GateStat" is not a known attribute')
    assert wrong[2].startswith('Arguments missing for parameters "recipe", "seeds", "out"')
