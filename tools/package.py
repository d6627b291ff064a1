"""Build the wheel and the source distribution, check both, and try each extra in an empty environment.

    python tools/package.py [--extras core,train,...] [--out dist] [--json FILE]

An environment is made in a temporary folder, the wheel is installed with one extra, and a script of a few lines runs
in it: it uses what that extra is for. What is printed: files and bytes of both archives, and for each extra the
installed MiB and the seconds that installation and script took.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_CORE = """
import torch, gatewise as gw
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
x = torch.randn(2, 3, 16, 16)
plain = net(x)
gw.insert_gates(net, "gct", example=x)
assert torch.equal(net(x), plain)
optimizer = torch.optim.SGD(gw.parameter_groups(net, weight_decay=1e-4), lr=0.1)
net(x).square().mean().backward()
optimizer.step()
program = torch.export.export(net.eval(), (x,))
torch.testing.assert_close(program.module()(x), net(x))
"""
_TRAIN = """
import gatewise as gw
recipe = gw.Recipe(data="digits", model="resnet20", gate="gct", epochs=1)
metrics = gw.train(recipe, "run")
assert 0 < metrics["accuracy"] <= 1
net, config = gw.load_model("run")
assert config["num_classes"] == 10
"""
_FAST = """
import torch, gatewise as gw
gate, fused = (gw.make_gate("gct", 8, backend=backend) for backend in ("reference", "cpu"))
x = torch.randn(2, 8, 16, 16)
torch.testing.assert_close(fused(x), gate(x))
"""
_EXPORT = """
import torch, gatewise as gw, onnxruntime
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
x = torch.randn(2, 3, 16, 16)
gw.insert_gates(net, "gct", example=x)
gw.export(net, "net.onnx", example=x)
found = onnxruntime.InferenceSession("net.onnx").run(None, {"image": x.numpy()})[0]
torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=1e-4, atol=1e-4)
"""
_HUB = """
import gatewise as gw
from gatewise.exporting.hub import PretrainedNet
net = gw.make_model("resnet20+gct")
PretrainedNet(net, "resnet20+gct").save_pretrained("shared")
assert PretrainedNet.from_pretrained("shared").network.state_dict().keys() == net.state_dict().keys()
"""
_RAY = """
import gatewise as gw
recipe = gw.Recipe(data="digits", model="resnet20", epochs=1)
results = gw.compare(recipe, [(), gw.ModelSpec.parse("resnet20+gct").gates], 1, "comparison", ray=True)
assert [variant["gates"] for variant in results["variants"]] == ["none", "gct"]
"""
# Each extra, what is installed, and what runs then; later parts need earlier ones.
SCRIPTS = {
    "core": ("", _CORE),
    "train": ("train", _CORE + _TRAIN),
    "fast": ("fast", _CORE + _FAST),
    "export": ("export", _CORE + _EXPORT),
    "hub": ("train,hub", _HUB),
    "ray": ("train,ray", _RAY),
    "all": ("all", _CORE + _TRAIN + _FAST + _EXPORT + _HUB),
}


def build(out: Path) -> dict[str, Any]:
    """Build both archives, check their metadata, and return what they contain."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True, stdout=subprocess.DEVNULL)
    wheel, source = (max(out.glob(pattern), key=lambda file: file.stat().st_mtime) for pattern in ("*.whl", "*.tar.gz"))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, source], check=True)
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(source) as archive:
        in_source = [name.partition("/")[2] for name in archive.getnames()]
    for files in (in_wheel, in_source):
        strays = [
            name for name in files if name.startswith(("tests/", "docs/", "benchmarks/", ".")) and name != ".gitignore"
        ]
        if strays:
            raise SystemExit(f"unexpected in the archive: {', '.join(strays[:5])}")
    files = {"wheel": (wheel, in_wheel), "source": (source, in_source)}
    return {
        kind: {"file": str(path), "bytes": path.stat().st_size, "files": len(names)}
        for kind, (path, names) in files.items()
    }


def try_extra(wheel: str, extra: str) -> dict[str, float]:
    """Install the wheel with an extra into an empty environment, run its script, and return seconds and MiB."""
    chosen, script = SCRIPTS[extra]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        venv.create(f"{folder}/env", with_pip=True)
        python = f"{folder}/env/bin/python"
        requirement = f"{Path(wheel).resolve()}[{chosen}]" if chosen else str(Path(wheel).resolve())
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
        installed = time.perf_counter()
        Path(folder, "work").mkdir()
        subprocess.run([python, "-c", script], check=True, cwd=f"{folder}/work", stdout=subprocess.DEVNULL)
        size = sum(
            file.stat().st_size for file in Path(folder, "env").rglob("*") if file.is_file() and not file.is_symlink()
        )
        return {
            "install_s": round(installed - start, 1),
            "script_s": round(time.perf_counter() - installed, 1),
            "mib": round(size / 2**20),
        }


def main() -> None:
    """Build, check and try, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default=",".join(SCRIPTS), help="separated by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--json", type=Path, help="file to write what was found to")
    options = parser.parse_args()
    found: dict[str, Any] = {"archives": build(options.out), "extras": {}}
    print(json.dumps(found["archives"], indent=1))
    for extra in filter(None, options.extras.split(",")):
        found["extras"][extra] = try_extra(found["archives"]["wheel"]["file"], extra)
        print(extra, json.dumps(found["extras"][extra]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
