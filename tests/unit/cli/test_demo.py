"""gatewise demo: its commands, and the page that links what they write."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from gatewise import cli
from gatewise.cli import run
from gatewise.cli.demonstration import _STEPS
from gatewise.errors import MissingExtraError


def links(page: Path) -> list[str]:
    return re.findall(r'<a href="([^"#]+)"', page.read_text())


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the commands of the story by one that remembers them, and writes only the results of the comparison."""
    monkeypatch.chdir(tmp_path)
    found: list[list[str]] = []

    def remember(words: list[str], **_: Any) -> None:
        found.append(words)
        if words[0] == "compare":
            (tmp_path / "demo/comparison").mkdir()
            (tmp_path / "demo/comparison/results.json").write_text(json.dumps({"summary": ["Use gct.", "Cost: none."]}))
        if words[0] == "export":
            raise MissingExtraError("export needs onnx")

    monkeypatch.setattr("gatewise.cli.demonstration.app", remember)
    return found


def test_commands_of_the_story_are_printed_as_they_are_run(
    asked: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo"]) == 0
    printed = re.findall(r"^\$ gatewise (.+)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [shlex.split(line) for line in printed] == asked
    assert [words[0] for words in asked] == ["check", "compare", "explain", "train", "export"]
    for words in asked:
        cli.app.parse_args(words, print_error=False, exit_on_error=False)


def test_without_an_extra_the_story_ends_with_its_page(
    asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo"]) == 0
    assert "left out: export needs onnx" in capsys.readouterr().out
    page = tmp_path / "demo/index.html"
    assert "Use gct. Cost: none." in page.read_text()
    assert links(page) == ["comparison/results.json", "digit.png"]  # of files that are there
    assert re.findall(r'<img src="([^"]*)"', page.read_text()) == ["digit.png"]


@pytest.mark.slow
def test_story_of_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time trains nothing again
        assert run(["demo", "--out", "here"]) == 0
        out, err = capsys.readouterr()
    assert "epoch 1/" not in err
    assert re.search(r"^here/digit.png: 7 [0-9.]+ %", out, flags=re.MULTILINE)
    assert sorted(links(tmp_path / "here/index.html")) == sorted(
        file for step in _STEPS for file in step.files.values()
    )
    assert "Use " in (tmp_path / "here/index.html").read_text()
