"""Words of messages: numbers with nouns, and notes as lines."""

from collections.abc import Iterable, Sequence


def counted(count: int, what: str) -> str:
    """Return a number and a noun; the noun, up to the word "of", gets the plural.

    >>> counted(2, "file of another kind"), counted(1, "image")
    ('2 files of another kind', '1 image')
    """
    head, of, tail = what.partition(" of ")
    return f"{count:,} {head}{'' if count == 1 else 's'}{of}{tail}"


def joined(names: Sequence[str]) -> str:
    """Return names joined by commas and "and".

    >>> joined(["none", "gct", "se"]), joined(["se"])
    ('none, gct and se', 'se')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def is_warning(note: str) -> bool:
    """Return whether a note is a warning."""
    return note.startswith("warning: ")


def as_lines(notes: Iterable[str]) -> list[str]:
    """Return notes as they are shown; warnings say so themselves.

    >>> as_lines(["warning: few images", "split.csv names the images"])
    ['warning: few images', 'note: split.csv names the images']
    """
    return [note if is_warning(note) else f"note: {note}" for note in notes]
