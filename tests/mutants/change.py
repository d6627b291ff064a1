"""The changes that a mutant can make: small operators, or an old and a new snippet."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field

from . import snippet

_OPPOSITE: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.Is: ast.IsNot,
    ast.In: ast.NotIn,
    ast.And: ast.Or,
    ast.Add: ast.Sub,
    ast.Mult: ast.Div,
}
_OPPOSITE |= {there: here for here, there in _OPPOSITE.items()}
_NEIGHBOUR = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}

Pair = tuple[list[ast.AST], list[ast.AST]]


@dataclass(frozen=True)
class Change:
    """Old code and its replacement; `nth` counts from 1 if the old code occurs several times."""

    words: str
    readings: Callable[[], list[Pair]] = field(repr=False)  # parsed again each time: trees are put into other trees
    nth: int | None = None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class TextChange:
    """Old and new text, for files that are not Python."""

    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.old!r} becomes {self.new!r}"


def replace(old: str, new: str, nth: int | None = None) -> Change:
    """Replace `old` by `new`: expressions, statements, or arguments of a call written `name=value`."""

    def readings() -> list[Pair]:
        if snippet.is_expression(old) and snippet.is_expression(new):
            return [([snippet.expression(old)], [snippet.expression(new)])]
        pairs = [(snippet.statements(old), snippet.statements(new))]
        before, after = snippet.argument(old), snippet.argument(new)
        if before and (after or not new):
            pairs.append(([before], [after] if after else []))
        return pairs

    return Change(f"{old!r} becomes {new!r}", readings, nth)


def remove(old: str, nth: int | None = None) -> Change:
    """Remove statements, an argument `name=value` of a call, or a decorator `@name`."""
    if old.startswith("@"):
        return Change(f"without {old!r}", lambda: [([snippet.expression(old[1:])], [])], nth)
    return Change(f"without {old!r}", replace(old, "").readings, nth)


def replace_text(old: str, new: str) -> TextChange:
    """Replace text in a file that is not Python."""
    return TextChange(old, new)


def drop_call(call: str, nth: int | None = None) -> Change:
    """Keep `x` of `x.call()`, `torch.call(x)` or `call(x)`; `call` is its name or the whole call."""

    def readings() -> list[Pair]:
        if call.isidentifier():
            return [([snippet.CallOf(call)], snippet.Rest())]
        node = snippet.expression(call)
        match node:
            case ast.Call(ast.Attribute(_, name)) | ast.Call(ast.Name(name)):
                rest = snippet.CallOf(name).rest(node)
                return [([node], [rest])] if rest else []
        raise ValueError(f"drop_call({call!r}): expected a call or the name of what is called")

    return Change(f"without the call {call!r}", readings, nth)


def flip(old: str, nth: int | None = None) -> Change:
    """Negate a comparison, exchange and/or, +/-, *//, True/False, or drop a `not`."""
    return _computed("flipped", old, _flipped, nth)


def off_by_one(old: str, nth: int | None = None) -> Change:
    """Exchange < and <=, > and >=; drop a `+ 1` or `- 1`; add 1 to anything else."""
    return _computed("off by one", old, _off_by_one, nth)


def swap(old: str, nth: int | None = None) -> Change:
    """Exchange the first two arguments of a call, two operands, the first two of a tuple, or the arms of an `if`."""
    return _computed("swapped", old, _swapped, nth)


def _computed(words: str, old: str, changed: Callable[[ast.expr], ast.expr], nth: int | None) -> Change:
    return Change(f"{old!r} {words}", lambda: [([snippet.expression(old)], [changed(snippet.expression(old))])], nth)


def _flipped(node: ast.expr) -> ast.expr:
    match node:
        case ast.Compare(_, [operator]) if type(operator) in _OPPOSITE:
            node.ops = [_OPPOSITE[type(operator)]()]  # type: ignore[list-item]
        case ast.BoolOp(operator) | ast.BinOp(_, operator) if type(operator) in _OPPOSITE:
            node.op = _OPPOSITE[type(operator)]()  # type: ignore[assignment]
        case ast.UnaryOp(ast.Not(), operand):
            return operand
        case ast.Constant(bool(value)):
            node.value = not value
        case _:
            raise ValueError(
                f"flip: expected a comparison, and, or, not, +, -, *, /, True or False: {ast.unparse(node)}"
            )
    return node


def _off_by_one(node: ast.expr) -> ast.expr:
    match node:
        case ast.Compare(_, [operator]) if type(operator) in _NEIGHBOUR:
            node.ops = [_NEIGHBOUR[type(operator)]()]
            return node
        case ast.BinOp(left, ast.Add() | ast.Sub(), ast.Constant(1)):
            return left
        case ast.Constant(int(value)):
            return ast.Constant(value + 1)
    return ast.BinOp(node, ast.Add(), ast.Constant(1))


def _swapped(node: ast.expr) -> ast.expr:
    match node:
        case ast.Call(_, [first, second, *_]):
            node.args[:2] = second, first
        case ast.Tuple([first, second, *_]):
            node.elts[:2] = second, first
        case ast.BinOp(left, _, right):
            node.left, node.right = right, left
        case ast.Compare(left, [_], [right]):
            node.left, node.comparators = right, [left]
        case ast.IfExp(_, body, orelse):
            node.body, node.orelse = orelse, body
        case _:
            raise ValueError(f"swap: expected a call, a tuple or two operands: {ast.unparse(node)}")
    return node
