"""Without a connection to the hub: its cache is used at once, and what is not in it is an error of one line."""

import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from gatewise.cli import run
from gatewise.core.hub_connection import cache_if_unreachable


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no request of ours to the hub succeed, none of its client's wait, and the cache be empty."""

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=fail))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("the client waits"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def needs_file(cache: Path) -> None:
    with cache_if_unreachable():
        huggingface_hub.hf_hub_download("cats/net", "config.json", cache_dir=cache)


def test_file_that_is_not_in_the_cache_fails_at_once(unreachable: None, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"{constants.ENDPOINT} cannot be reached \(no route to host\), and the local"):
        needs_file(tmp_path)
    assert not constants.is_offline_mode()


def test_cache_is_used(unreachable: None, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--cats--net/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("0123")
    needs_file(tmp_path)


def test_other_errors_are_not_blamed_on_the_connection(unreachable: None) -> None:
    for error in (ValueError("an option"), OSError("another server")):
        with pytest.raises(type(error), match=f"^{error}$"), cache_if_unreachable():
            raise error
    assert not constants.is_offline_mode()


def test_client_asks_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    with cache_if_unreachable():
        assert not constants.is_offline_mode()
    with pytest.raises(OSError, match=r"^no such file$"), cache_if_unreachable():
        raise OSError("no such file")


@pytest.mark.parametrize(
    ("line", "start", "end"),
    [
        (
            "train --data digits --model resnet18:pretrained=true --out run",
            "timm cannot get the pretrained weights of 'resnet18'",
            "Check the connection to the internet, or omit pretrained=true.",
        ),
        (
            "train --data digits --model hf-hub:cats/net --out run",
            "timm cannot get 'hf-hub:cats/net'",
            "Check the connection to the internet.",
        ),
        (
            "check --data hub:cats/dogs",
            "datasets cannot load 'cats/dogs'",
            "Check the name, and the connection to the internet.",
        ),
    ],
)
def test_commands_say_so_in_one_line(
    unreachable: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, start: str, end: str
) -> None:
    words = [str(tmp_path / "run") if word == "run" else word for word in line.split()]
    assert run(words) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"gatewise: {start} ({constants.ENDPOINT} cannot be reached (no route to host), and the")
    assert said.endswith(f". {end}")
