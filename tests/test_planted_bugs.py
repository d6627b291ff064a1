"""Every listed bug can be planted: its text stands exactly once in the file. `planted_bugs.py` plants them."""

from collections import Counter
from pathlib import Path

import pytest
from planted import BUGS, Bug

SOURCE = Path(__file__).parent.parent / "src/gatewise"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted_and_has_a_test(bug: Bug) -> None:
    assert (SOURCE / bug.file).read_text().count(bug.old) == 1
    assert bug.new != bug.old
    words = bug.test.replace("(", " ").replace(")", " ").split()
    assert all(
        word in (Path(__file__).parent / bug.test_file).read_text() for word in words if word.startswith("test_")
    )


def test_names_are_told_apart() -> None:
    assert max(Counter(bug.name for bug in BUGS).values()) == 1
