"""What a planted bug is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One replacement in one file of src/gatewise, and the test that fails with it."""

    name: str
    file: str
    old: str
    new: str
    test_file: str
    test: str
