"""Build the wheel and the source distribution, check both, and try each extra in an empty environment.

    python tools/package.py [--extras core,train,...] [--out dist] [--json FILE]

The wheel alone is installed into an empty environment in a temporary folder. For each extra a copy of that environment,
whose files are hard links, gets what the extra adds, and a script of a few lines uses what the extra is for. What is
printed: files and bytes of both archives, and for each extra the installed MiB and the seconds that installation (of
the wheel alone, or of what is added) and script took.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# What the source distribution has apart from the package; the build adds PKG-INFO and .gitignore.
BESIDE_SOURCE = (
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml"),
    *("PKG-INFO", ".gitignore"),
)
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
gate, fused = (gw.make_gate("gct", 8, backend=backend) for backend in ("reference", "fused"))
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
_OPENVINO = """
from gatewise.exporting.runtime_bench import bench_runtimes
found = bench_runtimes("run", runtimes=("torch", "openvino"), batch_sizes=(1,), rounds=2, images=16)
assert "openvino" in found["batches"]["1"]["float32"]["masked"]
"""
_TIFF = """
import numpy as np, tifffile
from pathlib import Path
from gatewise.data import Reading, load_dataset
rng = np.random.default_rng(0)
for name in ("a", "b"):
    Path("bands", name).mkdir(parents=True)
    for number in range(5):
        pixels = rng.integers(0, 4096, (16, 16, 6), dtype=np.uint16)
        tifffile.imwrite(f"bands/{name}/{number}.tif", pixels, compression="lzw", planarconfig="contig")
assert load_dataset("bands", reading=Reading(channels="all")).channels == 6
"""
_CORRUPTIONS = """
import torch
from gatewise.data.corruptions import CORRUPTIONS, corrupted
for side in (32, 64):
    for name in CORRUPTIONS:
        assert corrupted(torch.full((3, side, side), 128.0), name, 3, 0).shape == (3, side, side)
"""
# Each extra in pyproject.toml, and the script that uses it.
SCRIPTS = {
    "core": _CORE,
    "train": _CORE + _TRAIN,
    "fast": _CORE + _FAST,
    "export": _CORE + _EXPORT,
    "openvino": _TRAIN + _OPENVINO,
    "hub": _HUB,
    "tiff": _TIFF,
    "corruptions": _CORRUPTIONS,
    "ray": _RAY,
    "all": _CORE + _TRAIN + _FAST + _EXPORT + _HUB + _TIFF,
}


def build(out: Path) -> dict[str, Any]:
    """Build both archives, check their metadata and their files, and return what they contain."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True, stdout=subprocess.DEVNULL)
    wheel, source = (max(out.glob(pattern), key=lambda file: file.stat().st_mtime) for pattern in ("*.whl", "*.tar.gz"))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, source], check=True)
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(source) as archive:
        in_source = [name.partition("/")[2] for name in archive.getnames()]
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    package = [name.removeprefix("src/") for name in tracked.splitlines()]
    metadata = f"gatewise-{wheel.name.split('-')[1]}.dist-info"
    described = [
        f"{metadata}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    ]
    check_names("wheel", in_wheel, [*package, *described])
    check_names("source", in_source, [*(f"src/{name}" for name in package), *BESIDE_SOURCE])
    return {
        kind: {"file": path.name, "bytes": path.stat().st_size, "files": len(names)}
        for kind, path, names in (("wheel", wheel, in_wheel), ("source", source, in_source))
    }


def check_names(kind: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Exit with a message if the files of an archive are not those expected."""
    missing, strays = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if missing or strays:
        raise SystemExit(f"{kind}: missing {missing[:5]}, unexpected {strays[:5]}")


def install(environment: Path, requirement: str) -> float:
    """Install a requirement with pip into an environment, and return the seconds that it took."""
    start = time.perf_counter()
    subprocess.run([environment / "bin/python", "-m", "pip", "install", "--quiet", requirement], check=True)
    return round(time.perf_counter() - start, 1)


def run_script(environment: Path, extra: str) -> dict[str, float]:
    """Run the script of an extra in an empty folder, and return its seconds and the MiB of the environment."""
    start = time.perf_counter()
    python, variables = environment / "bin/python", {**os.environ, "PYTHONPATH": ""}  # not the package in src/
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([python, "-c", SCRIPTS[extra]], check=True, cwd=work, env=variables, stdout=sys.stderr)
    files = (path for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(path.stat().st_size for path in files)
    return {"script_s": round(time.perf_counter() - start, 1), "mib": round(size / 2**20)}


def tried(wheel: Path, extras: Iterable[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each extra with what its installation and script took: one environment at a time, and that of the core.

    An extra is added as error messages say, `pip install 'gatewise[train]'`: pip keeps the gatewise that is there.
    """
    with tempfile.TemporaryDirectory() as folder:
        core = Path(folder, "core")
        venv.create(core, with_pip=True)
        seconds = install(core, str(wheel))
        for extra in extras:
            if extra == "core":
                yield extra, {"install_s": seconds, **run_script(core, extra)}
                continue
            copy = shutil.copytree(core, Path(folder, extra), symlinks=True, copy_function=os.link)
            yield extra, {"install_s": install(copy, f"gatewise[{extra}]"), **run_script(copy, extra)}
            shutil.rmtree(copy)


def main() -> None:
    """Build, check and try, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default=",".join(SCRIPTS), help="separated by commas; none only builds")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--json", type=Path, help="file to write what was found to")
    options = parser.parse_args()
    extras = [extra for extra in options.extras.split(",") if extra]
    if unknown := [extra for extra in extras if extra not in SCRIPTS]:
        parser.error(f"unknown extras {', '.join(unknown)}; expected some of {', '.join(SCRIPTS)}")
    found: dict[str, Any] = {"archives": build(options.out), "extras": {}}
    print(json.dumps(found["archives"], indent=1), flush=True)
    for extra, measured in tried(options.out / found["archives"]["wheel"]["file"], extras):
        found["extras"][extra] = measured
        print(extra, json.dumps(measured), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
