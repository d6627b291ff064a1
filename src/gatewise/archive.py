"""Archives of torch.export, looked through before torch opens them.

torch opens such an archive as a program that one trusts: it unpickles some entries, evaluates text as Python, and calls
whatever the graph names. So here each entry must be of a kind that `gatewise export` writes, and hold nothing but
tensors, operators and arithmetic on sizes. What is allowed is listed; everything else is refused.
"""

# pyright: basic

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gatewise import _validation, errors
from gatewise.files import read_bytes

_ENTRIES = (  # behind the archive's own folder
    (r"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|extra/\w+", None),
    (r"data/weights/weight_\d+|data/constants/tensor_\d+", None),
    (r"data/weights/\w+_weights_config\.json|data/constants/\w+_constants_config\.json", "_payloads"),
    (r"data/sample_inputs/\w+\.pt", "_inputs"),
    (r"models/\w+\.json", "_program"),
)
_TARGETS = re.compile(
    r"torch\.ops\.aten\.(?!from_file|set_|set\b)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|lshift|rshift)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_\w+|torch\._sym_sqrt"
)
_SIZES = re.compile(r"[\w\s\[\]'().,+*/%<>=!&|-]{0,2000}")  # no quotes but single ones, no comment, no line's end
_CALLED = {
    *(
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Abs",
        "Mod",
        "PythonMod",
        "FloorDiv",
    ),
    *("CeilDiv", "CleanDiv", "CeilToInt", "FloorToInt", "ModularIndexing", "Where", "Eq", "Ne", "Lt", "Le", "Gt", "Ge"),
    *("GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "Equality", "Unequality", "Infinity"),
    *(
        "NegativeInfinity",
        "BooleanTrue",
        "BooleanFalse",
        "And",
        "Or",
        "Not",
        "TruncToInt",
        "IntTrueDiv",
        "FloatTrueDiv",
        "ToFloat",
        "Piecewise",
        "min",
        "max",
    ),
}
_READ = {"size", "stride", "storage_offset", "dim"}  # of an input, by a guard
_PLAIN = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load, ast.keyword, ast.Tuple),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_STRUCTURES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_LARGEST_POWER = 8
_MOST_POWERS = 4


def checked_archive(file: Path) -> io.BytesIO:
    """Return a copy of an archive of torch.export with the entries that were looked through, and no others.

    Refused with `DataError`, which names the entry: a file that is no such archive, an entry of another kind,
    compressed or there twice, a pickle with more than tensors in it, code in the place of a size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(file))) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if len(set(names)) < len(names) or any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise errors.DataError(f"{file} was not opened: it has compressed entries, or two of one name.")
            entries = {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, errors.GatewiseError):
            raise
        raise errors.DataError(f"{file} is no archive of torch.export ({' '.join(str(error).split())}).") from None
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:  # two readers of one file may see different entries in it
        for name, content in entries.items():
            if reason := _objection(name, content):
                raise errors.DataError(
                    f"{file} was not opened: {name} {reason}. If you trust the file, open it with torch.export.load."
                )
            archive.writestr(zipfile.ZipInfo(name), content)
    copy.seek(0)
    return copy


def _objection(name: str, content: bytes) -> str:
    """Return why an entry is not what `gatewise export` writes, or ""."""
    for pattern, check in _ENTRIES:
        if re.fullmatch(rf"[\w.-]+/(?:{pattern})", name):
            return _CHECKS[check](content) if check else ""
    return "is not among what gatewise export writes"


def _inputs(content: bytes) -> str:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # whatever its bytes lead to
        return "holds more than tensors" if content else ""
    return ""


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _payloads(content: bytes) -> str:
    config = _json(content)
    payloads = config.get("config") if isinstance(config, dict) else None
    if not isinstance(payloads, dict) or not all(isinstance(payload, dict) for payload in payloads.values()):
        return "is no list of tensors"
    for payload in payloads.values():
        if payload.get("use_pickle") is not False:
            return "asks for a pickle to be opened"
        if not re.fullmatch(r"(weight|tensor)_\d+", str(payload.get("path_name"))):
            return f"names {_validation.shown(payload.get('path_name'))}, which is no tensor"
    return ""


def _program(content: bytes) -> str:
    program = _json(content)
    if not isinstance(program, dict):
        return "is no program"
    try:
        return next(filter(None, (_CHECKED[key](value) for key, value in _items(program) if key in _CHECKED)), "")
    except (ValueError, RecursionError):
        return "is nested too deeply"


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of every mapping in nested values, with its value; a mapping with a target is a node."""
    if isinstance(values, dict):
        if "target" in values and "inputs" in values:
            yield "node", values["target"]
        for key, value in values.items():
            yield key, value
            yield from _items(value)
    elif isinstance(values, list):
        for value in values:
            yield from _items(value)


def _node(target: Any) -> str:
    return "" if isinstance(target, str) and _TARGETS.fullmatch(target) else f"calls {_validation.shown(target)}"


def _code(expression: Any) -> str:
    """Object to text that is more than arithmetic on sizes."""
    problem = f"holds {_validation.shown(expression)} in the place of a size"
    if not isinstance(expression, str) or not _SIZES.fullmatch(expression):
        return problem
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return problem
    nodes = list(ast.walk(tree))
    powers = sum(isinstance(node, ast.Pow | ast.LShift) for node in nodes)  # of powers a few are beyond any computer
    return "" if powers <= _MOST_POWERS and all(map(_is_arithmetic, nodes)) else problem


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift | ast.RShift):
        power = node.right
        return isinstance(power, ast.Constant) and isinstance(power.value, int) and abs(power.value) <= _LARGEST_POWER
    if isinstance(node, ast.Call):
        own = isinstance(node.func, ast.Name) and node.func.id in _CALLED
        return own or (isinstance(node.func, ast.Attribute) and node.func.attr in _READ)
    if isinstance(node, ast.Attribute):
        return node.attr in _READ
    if isinstance(node, ast.Name):
        return node.id in _CALLED | {"L", "True", "False", "true", "false", "oo", "int_oo"} or _is_symbol(node.id)
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or (isinstance(node.value, str) and node.value.isidentifier())
    return isinstance(node, _PLAIN)


def _is_symbol(name: str) -> bool:
    return re.fullmatch(r"[a-z]{1,6}\d+", name) is not None


def _guards(guards: Any) -> str:
    if not isinstance(guards, list):
        return "holds no list of guards"
    return next(filter(None, map(_code, guards)), "")


def _structure(text: Any) -> str:
    """Object to the form of inputs or outputs that is more than tuples, lists and dictionaries without keys."""
    problem = f"holds {_validation.shown(text)} in the place of a structure"
    if text is None or text == "":
        return ""
    parts = _json(text.encode()) if isinstance(text, str) else None
    if not isinstance(parts, list):
        return problem
    found = list(_items(parts))
    types = [value for key, value in found if key == "type"]
    contexts = [value for key, value in found if key == "context"]
    known = {key for key, _ in found} <= {"type", "context", "children_spec"}
    plain = all(kind is None or (isinstance(kind, str) and kind in _STRUCTURES) for kind in types)
    return "" if known and plain and all(context in (None, "null", "[]") for context in contexts) else problem


def _identifiers(names: Any) -> str:
    fine = isinstance(names, list) and all(isinstance(name, str) and name.isidentifier() for name in names)
    return "" if fine or names is None else f"calls its inputs {_validation.shown(names)}"


def _nothing(value: Any) -> str:
    return f"holds {_validation.shown(value)}, an object that is no tensor" if value else ""


def _names_of_symbols(ranges: Any) -> str:
    fine = isinstance(ranges, dict) and all(_code(name) == "" for name in ranges)
    return "" if fine else f"has ranges of {_validation.shown(ranges)}"


_CHECKED: dict[str, Callable[[Any], str]] = {
    "node": _node,
    "expr_str": _code,
    "guards_code": _guards,
    "range_constraints": _names_of_symbols,
    "in_spec": _structure,
    "out_spec": _structure,
    "forward_arg_names": _identifiers,
    "as_custom_obj": _nothing,
    "custom_obj_name": _nothing,
    "treespec_namedtuple_fields": _nothing,
}
_CHECKS: dict[str, Callable[[bytes], str]] = {"_payloads": _payloads, "_inputs": _inputs, "_program": _program}
