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


def pyright(folder: Path, script: str) -> list[dict[str, object]]:
    """Return what pyright says of a script, by line."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs pyright")
    (folder / "script.py").write_text(script)
    source = Path(gw.__file__).parent.parent
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(source)], "include": ["script.py"]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return json.loads(result.stdout)["generalDiagnostics"]


def test_type_checker_knows_every_public_name(tmp_path: Path) -> None:
    names = "\n".join(f"reveal_type(gw.{name})" for name in gw.__all__)
    found = pyright(tmp_path, f"import gatewise as gw\n{names}\n")
    assert len(found) == len(gw.__all__)
    assert not [line for line in found if line["severity"] != "information" or "Unknown" in str(line["message"])]


def test_type_checker_knows_calls_of_user_script(tmp_path: Path) -> None:
    found = pyright(tmp_path, SCRIPT)
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
