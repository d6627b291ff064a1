"""Version, extras, licences and workflows say the same, and no page installs gatewise from where it is not."""

import re
import tomllib
from typing import Any

import pytest
import yaml

from support.project import ROOT
from tools import licences_page, package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CHECKS = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text("utf-8"))["jobs"]


def test_version_and_date_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    releases = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert releases[:2] == ["Unreleased", f"{PROJECT['version']}, {citation['date-released']}"]
    assert citation["version"] == PROJECT["version"]


def test_every_extra_is_tried_here_and_in_the_workflow() -> None:
    assert sorted(package.SCRIPTS) == sorted(["core", *PROJECT["optional-dependencies"]])
    assert sorted(CHECKS["package"]["strategy"]["matrix"]["extra"]) == sorted(package.SCRIPTS)


def test_workflow_has_the_oldest_python_and_a_newer_one() -> None:
    pythons = [job["python"] for job in CHECKS["test"]["strategy"]["matrix"]["include"]]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert len({*pythons}) == 2


@pytest.mark.parametrize("file", ["checks.yml", "mutants.yml"])
def test_actions_are_pinned_and_targets_exist(file: str) -> None:
    text = (ROOT / ".github/workflows" / file).read_text("utf-8")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    uses = re.findall(r"uses: (\S+)", text)
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in uses)
    assert {*re.findall(r"make ([\w-]+)", text), "test", "test-oldest"} <= {*targets}


def test_page_of_licences_has_every_dependency() -> None:
    text = (ROOT / "docs/licences.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| [^|]+ \| ([^|]+) \|$", text, flags=re.MULTILINE))
    del rows["package"], rows["---"]  # the head of the table
    direct = licences_page.direct_dependencies(PROJECT)
    assert rows == {name: ", ".join(extras) for name, extras in direct.items()}


STATED: list[tuple[dict[str, Any], str]] = [
    ({"license_expression": "Apache-2.0", "license": "other"}, "Apache-2.0"),
    ({"classifier": ["License :: OSI Approved", "Topic :: Games"], "license": "MIT"}, "MIT"),
    ({"classifier": ["License :: OSI Approved :: BSD License"], "license": "Copyright\nAll rights"}, "BSD License"),
    ({"license": "Permission is granted,\nfree of charge"}, ""),
    ({"license": "UNKNOWN"}, ""),
    ({}, ""),
]


@pytest.mark.parametrize(("metadata", "licence"), STATED)
def test_licence_is_read_from_metadata(metadata: dict[str, Any], licence: str) -> None:
    assert licences_page.licence_of(metadata) == licence


def test_unknown_licence_stops_the_page() -> None:
    known = {"name": "Torch", "license_expression": "BSD-3-Clause"}
    packages = [known, {"name": "gatewise"}, {"name": "a.b", "license": "MIT"}]
    text = licences_page.page(packages, {"torch": ["core"]})
    assert "| torch | BSD-3-Clause | core |\n" in text
    assert "| a-b | MIT |\n" in text
    with pytest.raises(SystemExit, match="no licence is stated by odd, missing"):
        licences_page.page([known, {"name": "odd"}], {"torch": ["core"], "missing": ["ray"]})


@pytest.mark.parametrize(("missing", "stray"), [("", "tests/test_a.py"), ("gatewise/py.typed", "")])
def test_archive_with_other_files_is_rejected(missing: str, stray: str) -> None:
    expected = ["gatewise/__init__.py", "gatewise/py.typed"]
    package.check_names("wheel", expected, expected)
    with pytest.raises(SystemExit, match=f"^wheel: .*{missing or stray}"):
        package.check_names("wheel", [*({*expected} - {missing}), *filter(None, [stray])], expected)


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*")])


def test_no_page_installs_gatewise_from_an_index() -> None:
    """It is on none; `pip install 'gatewise[extra]'` is what messages say, where gatewise is installed."""
    explained = "A message that names a missing extra ends with a command such as `pip install 'gatewise[export]'`"
    found = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        if page.is_file()
        for line in page.read_text("utf-8").replace(explained, "").splitlines()
        if re.search(r"pip install[^`#]*\bgatewise\b", line) and page.parent.name not in {"_build", "api"}
    ]
    assert found == []
