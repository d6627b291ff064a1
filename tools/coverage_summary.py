"""Summarise the branches that tests have run, file by file: what `make coverage` writes.

    python tools/coverage_summary.py docs/results/reliability/coverage.json

Reads the combined data of `coverage`. Prints the total and the files with the most branches and lines left.
"""

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from coverage import Coverage

ROOT = Path(__file__).parent.parent
_LEAST = 10  # files that are printed


def summary() -> dict[str, Any]:
    """Return the totals, and of each file its share and the lines that no test ran."""
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    with tempfile.NamedTemporaryFile(suffix=".json") as whole:
        coverage.json_report(outfile=whole.name, include="src/gatewise/*")  # tests copy the package too
        found = json.loads(Path(whole.name).read_text())
    files = {}
    for name, file in sorted(found["files"].items()):
        numbers = file["summary"]
        files[str(Path(name).relative_to("src/gatewise"))] = {
            "percent": round(numbers["percent_covered"], 2),
            "missing_lines": file["missing_lines"],
            "missing_branches": numbers["missing_branches"],
        }
    totals = found["totals"]
    return {
        "percent": round(totals["percent_covered"], 2),
        "statements": totals["num_statements"],
        "missing_lines": totals["missing_lines"],
        "branches": totals["num_branches"],
        "missing_branches": totals["missing_branches"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "files": files,
    }


def main(out: Path) -> None:
    """Write the summary and print the total."""
    found = summary()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    left = sorted(found["files"].items(), key=lambda item: item[1]["percent"])[:_LEAST]
    for name, file in left:
        print(f"{file['percent']:6.2f} %  {name}")
    print(f"{found['percent']:.2f} % of {found['statements']} lines and {found['branches']} branches")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
