"""Code compared as syntax trees: layout, comments and quotes make no difference.

A body that is written `...` in a snippet stands for any statements: `if a < b: ...` is every `if` with this condition
and without an `else`.
"""

import ast
from collections.abc import Iterator, Sequence

IGNORED = {"kind", "type_comment"}  # the u of u"text", and comments
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def expression(text: str) -> ast.expr:
    """Parse one expression.

    Raises:
        SyntaxError: `text` is no expression.
    """
    return ast.parse(text.strip(), mode="eval").body


def statements(text: str) -> list[ast.AST]:
    """Parse statements, of which there may be none."""
    return list(ast.parse(text).body)


def argument(text: str) -> ast.keyword | None:
    """Parse `name=value` as the argument of a call; return None for other text."""
    match ast.parse(text).body:
        case [ast.Assign([ast.Name(name)], value)]:
            return ast.keyword(name, value)
    return None


def is_expression(text: str) -> bool:
    """Return whether `text` is one expression."""
    try:
        expression(text)
    except SyntaxError:
        return False
    return True


def is_open(body: object) -> bool:
    """Return whether a list of statements is `...` alone."""
    match body:
        case [ast.Expr(ast.Constant(value))]:
            return value is ...
    return False


class CallOf(ast.expr):
    """A pattern: any call of a function or method of this name; its first argument or its object remains."""

    MODULES = ("torch", "F", "nn", "np", "numpy", "math", "tl", "functional", "functools")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def rest(self, node: ast.AST) -> ast.expr | None:
        """Return the argument or object of a call, or None if `node` is not such a call."""
        match node:
            case ast.Call(ast.Attribute(ast.Name(owner), name), [first, *_]) if owner in self.MODULES:
                rest = first
            case ast.Call(ast.Attribute(rest, name)) | ast.Call(ast.Name(name), [rest, *_]):
                pass
            case _:
                return None
        return rest if name == self.name and not isinstance(rest, ast.Starred) else None


def same(pattern: object, found: object, held: list[list[ast.AST]]) -> bool:
    """Compare a snippet with code; the statements of its open bodies are appended to `held`."""
    if isinstance(pattern, CallOf):
        rest = pattern.rest(found) if isinstance(found, ast.AST) else None
        held.extend([[rest]] if rest else [])
        return rest is not None
    if isinstance(pattern, list) and isinstance(found, list):
        if is_open(pattern) and found and isinstance(found[0], ast.stmt):
            held.append(found)
            return True
        return len(pattern) == len(found) and all(same(a, b, held) for a, b in zip(pattern, found, strict=True))
    if type(pattern) is not type(found):
        return False
    if isinstance(pattern, ast.AST):
        fields = (field for field in pattern._fields if field not in IGNORED)
        return all(same(getattr(pattern, field, None), getattr(found, field, None), held) for field in fields)
    return repr(pattern) == repr(found)  # distinguishes 0.0 from -0.0


def filled(nodes: Sequence[ast.AST], held: list[list[ast.AST]]) -> list[ast.AST]:
    """Fill the open bodies of the new snippet with the statements of the old one, in order."""
    waiting = iter(held)

    def visit(node: ast.AST) -> ast.AST:
        for field, value in ast.iter_fields(node):
            if is_open(value):
                setattr(node, field, next(waiting, value))
            elif isinstance(value, list):
                setattr(node, field, [visit(one) if isinstance(one, ast.AST) else one for one in value])
            elif isinstance(value, ast.AST):
                visit(value)
        return node

    if is_open(list(nodes)) or isinstance(nodes, Rest):
        return next(waiting, list(nodes))
    return [visit(node) for node in nodes]


class Rest(list[ast.AST]):
    """A new snippet that consists of the held statements of the old one."""


def symbols(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Yield the name and the definition of each function and class, as "Class.method"."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, Definition):
                name = f"{prefix}.{child.name}" if prefix else child.name
                yield name, child
            yield from walk(child, name)

    yield from walk(tree, "")
