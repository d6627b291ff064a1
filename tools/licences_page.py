"""Write docs/licences.md, with the licences of all packages that gatewise and its extras install (`make licences`).

pip resolves the project with all its extras without installing anything, and reports the metadata of each package.
The page has the direct dependencies, with the extras that they belong to, and those that these install in turn.
A package whose metadata has no licence stops the program; read its licence file, and add it to `READ`.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Packages whose metadata states no licence, and what their files say.
READ = {"cuda-toolkit": "none stated (a list of other packages, without files of its own)"}
_LONGEST = 60  # characters of the metadata's field "License" that may be a name; longer ones are the text of a licence
_PAGE = """# Licences

gatewise is under Apache-2.0. The packages that it installs state the licences below in their metadata. `make licences`
writes this page from what pip would install on Linux with Python {python}, and stops at a package that states none.

## Direct dependencies

| package | licence | part of |
| --- | --- | --- |
{direct}

## What these install

| package | licence |
| --- | --- |
{indirect}
"""


def canonical(name: str) -> str:
    """Return the normalised name of a package, without extras and versions.

    >>> canonical("PyYAML>=6"), canonical("huggingface_hub[cli]>=0.30")
    ('pyyaml', 'huggingface-hub')
    """
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name.strip())[0]).lower()


def direct_dependencies(project: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the extras of each direct dependency; that of the dependencies of gatewise alone is "core".

    >>> direct_dependencies({"dependencies": ["torch"], "optional-dependencies": {"ray": ["gatewise[fast]", "ray"]}})
    {'torch': ['core'], 'ray': ['ray']}
    """
    found: dict[str, list[str]] = {}
    for extra, requirements in {"core": project["dependencies"], **project["optional-dependencies"]}.items():
        for name in map(canonical, requirements):
            if name != "gatewise":
                found.setdefault(name, []).append(extra)
    return found


def licence_of(metadata: Mapping[str, Any]) -> str:
    """Return the licence that a package states in its metadata, or "" if it states none.

    >>> licence_of({"classifier": ["License :: OSI Approved :: MIT License"], "license": "MIT"})
    'MIT License'
    """
    classifiers = [entry.rpartition(" :: ")[2] for entry in metadata.get("classifier", ()) if entry[:7] == "License"]
    text = metadata.get("license", "").strip()
    named = [text] if text and len(text) <= _LONGEST and "\n" not in text and text.upper() != "UNKNOWN" else []
    stated = [name for name in classifiers if name not in {"OSI Approved", "Other/Proprietary License"}] or named
    return metadata.get("license_expression") or " and ".join(dict.fromkeys(stated))


def page(packages: Iterable[Mapping[str, Any]], direct: Mapping[str, list[str]]) -> str:
    """Return the page from the metadata of all packages; exit if a licence is unknown."""
    stated = {canonical(metadata["name"]): licence_of(metadata) for metadata in packages}
    licences = {name: licence or READ.get(name, "") for name, licence in sorted(stated.items()) if name != "gatewise"}
    if unknown := [name for name in {**licences, **direct} if not licences.get(name)]:
        raise SystemExit(f"no licence is stated by {', '.join(unknown)}. Read its licence file and add it to READ.")
    of_direct = [f"| {name} | {licences[name]} | {', '.join(direct[name])} |" for name in sorted(direct)]
    others = [f"| {name} | {licence} |" for name, licence in licences.items() if name not in direct]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _PAGE.format(python=python, direct="\n".join(of_direct), indirect="\n".join(others))


def main() -> None:
    """Let pip resolve the project with all extras, and write the page."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = f"{ROOT}[{','.join(project['optional-dependencies'])}]"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run([*command, wanted], check=True, capture_output=True, text=True).stdout
    packages = [entry["metadata"] for entry in json.loads(report)["install"]]
    (ROOT / "docs/licences.md").write_text(page(packages, direct_dependencies(project)), "utf-8")


if __name__ == "__main__":
    main()
