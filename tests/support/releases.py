"""Installed versions of packages, for tests that the oldest supported version cannot pass."""


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    first, second = version.split(".")[:2]
    return int(first), int(second)
