"""Say why a network cannot be read, and what to do, in one line without the internals of torch."""

import textwrap
from typing import Any

_DEPENDS = "computed values decide which layers run"
_PART = "use the part of the network that takes one tensor, such as the backbone of a detector"
_SELECT = "select the convolutions with before=torch.nn.Conv2d"


def why_unreadable(failures: dict[tuple[Any, ...], list[Exception]], *, by_type: bool) -> str:
    """Return the reasons and the advice.

    Args:
        failures: the exceptions of torch.export and torch.fx, by the shapes of the tensors that the network was given.
        by_type: whether the caller can select layers by their type instead, which needs no graph.

    >>> why_unreadable({((2, 3, 8, 8),): [ValueError("a data-dependent expression")]}, by_type=True)[:64]
    '(on (2, 3, 8, 8): computed values decide which layers run). Use '
    """
    if not failures:
        guess = "(it has no convolution, from which an input could be guessed)"
        return f"{guess}. Pass a valid input as example=; or {_PART}."
    reasons: list[str] = []
    for shapes, tried in failures.items():
        by_forward = [error.__cause__ for error in tried if isinstance(error.__cause__, Exception)]
        words = dict.fromkeys(_reason(error) for error in by_forward[-1:] or tried)
        reasons.append(f"{' and '.join(map(str, shapes)) or 'no tensor'}: {'; '.join(words)}")
    found = "; on ".join(reasons)
    advice = [_PART]
    if not all(_DEPENDS in reason for reason in reasons):
        advice.insert(0, "pass a valid input as example=")
    if by_type:
        advice.append(_SELECT)
    return f"(on {found}). {advice[0].capitalize()}{''.join(f'; or {other}' for other in advice[1:])}."


def values_decide(error: Exception) -> bool:
    """Return whether a network cannot be read because computed values decide which layers run.

    >>> values_decide(ValueError("a data-dependent expression")), values_decide(RuntimeError("sizes do not match"))
    (True, False)
    """
    text = _first_line(error)
    return "data-dependent" in text or "control flow" in text


def _reason(error: Exception) -> str:
    if values_decide(error):
        return _DEPENDS
    return textwrap.shorten(f"{type(error).__name__}: {_first_line(error)}", 200, placeholder="...")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
