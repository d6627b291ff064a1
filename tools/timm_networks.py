"""Try gates in the smallest network of every architecture module of timm, and keep one row per module.

    OMP_NUM_THREADS=1 nice -n 19 python tools/timm_networks.py --out docs/results/timm/networks.json

Rows that the file has are kept, so an interrupted call goes on where it stopped; `--again` repeats those that are not
"ok", and `--only coat,convit` limits the modules. Each module runs in a process of its own with a time limit.
"""

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.graph import Graph
from gatewise.graph.measure import environment

RESULTS = Path(__file__).parents[1] / "docs/results/timm/networks.json"
SIZES = (64, 96, 128, 192, 224, 256, 320, 384, 512)  # sides of the image; the first that a network takes
STEPS = ("insert gct", "check", "strict load", "undo", "insert se", "GaterNet, all open", "skip", "compact")
TOLERANCE = 1e-4  # of the largest output, in float32
NOT_TRIED = "not tried"  # without gates there is nothing to check, without a GaterNet nothing to skip


class WrongResultError(Exception):
    """A call that went through and gave something else than it promises."""


def smallest(module: str) -> tuple[str, int]:
    """Return the network of a timm module with the fewest parameters, and their number; nothing is allocated."""
    counts: dict[str, int] = {}
    for name in timm.list_models(module=module):
        with suppress(Exception), torch.device("meta"):  # some networks read values of tensors while they are built
            counts[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    if not counts:
        name = timm.list_models(module=module)[0]
        return name, sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    name = min(counts, key=lambda name: counts[name])
    return name, counts[name]


def built(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network with random weights in eval mode, and two images of the smallest size that it takes."""
    for size in SIZES:
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        for options in ({"img_size": size}, {}):
            torch.manual_seed(0)
            with suppress(Exception):
                model = timm.create_model(name, **options).eval()
                for parameter_name, parameter in model.named_parameters():
                    if not parameter_name.endswith("bias") and parameter.abs().max() < 1e-3:
                        nn.init.uniform_(parameter, 0.5, 1.5)  # a branch that begins as zero hides its gates
                with torch.no_grad():
                    model(x)
                return model, x
    raise ValueError(f"{name} takes no image of {SIZES[0]} to {SIZES[-1]} pixels")


class Trial:
    """One network, tried step by step; a step returns a remark, or raises."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.before = {name: value.clone() for name, value in model.state_dict().items()}
        self.plain = self.output(model)
        self.insertion: Any = None
        self.net: Any = None

    @torch.no_grad()
    def output(self, model: Any, **options: Any) -> list[Tensor]:
        """Return the tensors of a network's output."""
        return [leaf.clone() for leaf in pytree.tree_leaves(model(self.x, **options)) if isinstance(leaf, Tensor)]

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield the steps in their order."""
        calls = (
            self.inserts_gct,
            self.checks,
            self.loads,
            self.undoes,
            self.inserts_se,
            self.opens_all,
            self.skips,
            self.compacts,
        )
        yield from zip(STEPS, calls, strict=True)

    def inserts_gct(self) -> str:
        self.insertion = gw.insert_gates(self.model, "gct", example=self.x)
        if not _equal(self.output(self.model), self.plain):
            raise WrongResultError("new gates change the output")
        return f"{len(self.insertion.gates)} gates"

    def checks(self) -> str:
        unreached = self.insertion.check(self.x)
        return f"not reached: {', '.join(unreached)}" if unreached else ""

    def loads(self) -> str:
        self.model.load_state_dict(self.before, strict=True)
        if not _equal(self.output(self.model), self.plain):
            raise WrongResultError("the output is another after a plain checkpoint was loaded")
        return ""

    def undoes(self) -> str:
        self.insertion.undo()
        after = self.model.state_dict()
        if list(after) != list(self.before) or not all(torch.equal(after[key], self.before[key]) for key in after):
            raise WrongResultError("the state dict is another after undo")
        if not _equal(self.output(self.model), self.plain):
            raise WrongResultError("the output is another after undo")
        return ""

    def inserts_se(self) -> str:
        graph = Graph(self.model, self.x)
        place = next((place for place in ("residual_end", "inner") if gw.find_places(graph, place).found), "inner")
        insertion = gw.insert_gates(graph, "se", place=place)
        count, unreached = len(insertion.gates), insertion.check(self.x)
        insertion.undo()
        if not _equal(self.output(self.model), self.plain):
            raise WrongResultError("the output is another after undo")
        return f"{count} gates at {place}" + (f", not reached: {', '.join(unreached)}" if unreached else "")

    def opens_all(self) -> str:
        inner = gw.find_places(Graph(self.model, self.x), "inner").found
        sites = "inner" if inner else "residual"
        self.net = gw.GaterNet(copy.deepcopy(self.model), sites=sites, gater=_gater, example=self.x).eval()
        _check_close("all gates open", self.output(self.net, gates=torch.ones(2, self.net.gate_count)), self.plain)
        return f"{self.net.gate_count} gates in {len(self.net.sites)} layers, {sites}"

    def skips(self) -> str:
        gates = (torch.rand(2, self.net.gate_count, generator=torch.Generator().manual_seed(2)) < 0.5).float()
        fast = gw.skip_closed_filters(self.net, mode="skip")
        _check_close("closed filters skipped", self.output(fast, gates=gates), self.output(self.net, gates=gates))
        return f"{len(self.net.sites) - len(fast.skipped)} of {len(self.net.sites)} layers skip"

    def compacts(self) -> str:
        small = gw.compact(self.net, [self.x])
        _check_close("compacted", self.output(small), self.output(self.net))
        removed = sum(site.removed for site in small.compaction.sites)
        return f"{removed} of {small.compaction.states.count('0')} closed filters removed"


def _gater(gates: int) -> nn.Module:
    """Return a gater with a third of its gates always closed, a third always open, the rest for the image to decide."""
    head = nn.Linear(3, gates)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([-9.0, 9.0, 0.0]).repeat(gates // 3 + 1)[:gates])
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _check_close(what: str, left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        difference = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
        if not difference <= TOLERANCE:
            raise WrongResultError(f"{what}: the output differs by {difference:.1e} of the largest")


def tried(module: str) -> Iterator[dict[str, Any]]:
    """Yield the row of a module again and again, after each step."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    row: dict[str, Any] = {"module": module, "steps": {}}
    row["model"], row["parameters"] = smallest(module)
    model, x = built(row["model"])
    row["image_size"] = x.shape[-1]
    trial = Trial(model, x)
    if not all(output.isfinite().all() for output in trial.plain):
        raise ValueError("the outputs of the plain network are not finite")
    for name, step in trial.steps():
        needed = {"check": trial.insertion, "strict load": trial.insertion, "undo": trial.insertion}
        needed |= {"skip": trial.net, "compact": trial.net}
        if name in needed and needed[name] is None:
            row["steps"][name] = {"result": NOT_TRIED}
            continue
        try:
            result, remark = "ok", step()
        except WrongResultError as error:
            result, remark = "wrong result", str(error)
        except gw.GatewiseError as error:
            result, remark = "rejected", str(error)
        except Exception as error:  # of torch, timm or this package: all are errors of the row
            result, remark = "error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        row["steps"][name] = {"result": result, **({"remark": remark} if remark else {})}
        row["seconds"] = round(time.perf_counter() - start, 1)
        yield row
    yield row


def row_of(module: str, limit: float) -> dict[str, Any]:
    """Try a module in a process of its own, and return its row; steps that it did not reach are errors."""
    row: dict[str, Any] = {"module": module, "steps": {}}
    command = [sys.executable, __file__, "--module", module]
    reason = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        output, reason = done.stdout, " ".join(done.stderr.split())[-300:]
    except subprocess.TimeoutExpired as expired:
        output, reason = (expired.stdout or b"").decode(), f"no result within {limit:g} s"
    with suppress(IndexError, ValueError):
        row = json.loads(output.splitlines()[-1])
    for step in STEPS:
        row["steps"].setdefault(step, {"result": "error", "remark": reason})
    return row


def verdict(row: dict[str, Any]) -> str:
    """Return the worst result of a row's steps.

    >>> verdict({"steps": {"skip": {"result": "ok"}, "compact": {"result": "rejected"}}})
    'rejected'
    """
    results = {step["result"] for step in row["steps"].values()}
    return next(result for result in ("wrong result", "error", "rejected", "ok") if result in results)


def summary(content: dict[str, Any]) -> str:
    """Return the rows as Markdown: how many networks pass each step, and why the others do not."""
    rows, where = content["rows"], content["environment"]
    results = ("ok", "rejected", "wrong result", "error", NOT_TRIED)
    table: list[str] = []
    reasons: dict[str, list[str]] = {}
    for step in STEPS:
        found = [(row.get("model", row["module"]), row["steps"][step]) for row in rows]
        counts = [sum(result == each["result"] for _, each in found) for result in results]
        table.append(f"| {step} | {' | '.join(map(str, counts))} |")
        for model, each in found:
            if each["result"] not in {"ok", NOT_TRIED}:
                reasons.setdefault(f"{step}, {each['result']}: {_reason(each.get('remark', ''))}", []).append(model)
    minutes = sum(row.get("seconds", 0) for row in rows) / 60
    every = content["modules"]
    which = f"each of timm's {every}" if len(rows) == every else f"{len(rows)} of timm's {every}"
    return f"""`tools/timm_networks.py` tries the smallest network of {which} architecture modules:
`gct` before every convolution, a forward, a plain checkpoint, `undo`; `se` at `residual_end` or `inner`; a GaterNet
with all gates open, with random gates skipped, and compacted. [Rows](results/timm/networks.json), written in
{minutes:.0f} minutes on one thread with timm {where["timm"]} and torch {where["torch"].partition("+")[0]}:

| step | {" | ".join(results)} |
| --- | {" | ".join("---" for _ in results)} |
{chr(10).join(table)}

{chr(10).join(f"- {reason} ({len(models)}): {', '.join(models)}" for reason, models in reasons.items())}
"""


def _reason(remark: str) -> str:
    """Return the first clause of a message without the names and numbers of one network.

    >>> _reason("no place for se@inner in Net (a: its channels are also used; b: x). Choose another place.")
    'no place for se@inner'
    """
    clause = re.sub(r"^[A-Z]\w+ has", "has", remark).partition(" (")[0].partition(". ")[0]
    return re.sub(r" in [A-Z]\w*$| by \d.*$", "", clause)[:120].removesuffix(".")


def main() -> None:
    """Try all modules that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one module")
    parser.add_argument("--only", default="", help="modules, separated by commas")
    parser.add_argument("--again", action="store_true", help="repeat the rows that are not ok")
    parser.add_argument("--module", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.module:
        warnings.simplefilter("ignore")  # from the libraries, about their own defaults
        for row in tried(options.module):
            print(json.dumps(row), flush=True)
        return
    known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = {row["module"]: row for row in known}
    for module in options.only.split(",") if options.only else timm.list_modules():
        if module in rows and not (options.again and verdict(rows[module]) != "ok"):
            continue
        rows[module] = row_of(module, options.limit)
        content = {
            "command": "python tools/timm_networks.py",
            "environment": _environment(),
            "modules": len(timm.list_modules()),
            "rows": _sorted(rows),
        }
        write_json(options.out, content)
        print(f"{module}: {rows[module].get('model')} {verdict(rows[module])}", flush=True)


def _environment() -> dict[str, Any]:
    return {**environment(torch.device("cpu")), "timm": timm.__version__, "threads": os.environ.get("OMP_NUM_THREADS")}


def _sorted(rows: dict[str, Any]) -> list[Any]:
    return [rows[module] for module in sorted(rows)]


if __name__ == "__main__":
    main()
