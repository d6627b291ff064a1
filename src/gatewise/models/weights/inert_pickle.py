"""Read the tensors of a torch.save file whose pickle contains objects of any class, without running anything in it.

No name in the pickle is looked up: each class or function it names becomes a new subclass of `Record`, so that a call
only stores its arguments. The tensors are then built from the records of torch's own functions. An unpickler's stack
therefore contains plain values, records and their classes, and a call of such a class is all that a pickle can do.
"""

# pyright: basic

import io
import pickle
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

# Codes of registered extensions and of buffers outside the file; torch.save writes neither.
_REFUSED = {pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.BYTEARRAY8}

# No weight file needs these. Opening such a file would run nothing either, but its reader should know what it is.
_PROGRAMS = {
    *("os", "posix", "nt", "sys", "subprocess", "shutil", "pty", "socket", "runpy", "importlib", "ctypes", "code"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "builtins.open", "io.open"),
    *("_io.open", "builtins.input", "builtins.breakpoint", "_posixsubprocess"),
}

_STORAGES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
    **{"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8},
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a file of torch.save before torch 1.6


class Record:
    """What a pickle says about one object.

    Attributes:
        name: the class or function that the pickle names.
        arguments: positional arguments of the call.
        state: what the pickle would restore the object from, or None.
        items: items of a dictionary, in their order.
    """

    __slots__ = ("arguments", "items", "state")
    name: ClassVar[str]

    def __new__(cls, *arguments: Any, **_: Any) -> "Record":
        record = object.__new__(cls)
        record.arguments, record.state, record.items = arguments, None, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, element: Any) -> None:
        """Leave out an element of a list."""

    def extend(self, elements: Iterable[Any]) -> None:
        """Leave out elements of a list."""

    add = append


class _Unpickler(pickle._Unpickler):
    """Reads a pickle as plain values and records.

    torch's own accepts no items in objects of unknown classes; the one in C allocates any memory that a pickle demands.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: step for code, step in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED
    }

    def __init__(self, file: io.BytesIO, classes: dict[str, type[Record]]) -> None:
        super().__init__(file, encoding="latin1")
        self.classes = classes

    def find_class(self, module: str, name: str) -> type[Record]:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}"  # pickles for Python 2, as torch writes them, have its names
        if module.partition(".")[0] in _PROGRAMS or path in _PROGRAMS:
            raise pickle.UnpicklingError(f"it names {path}, which runs programs")
        if path not in self.classes:
            self.classes[path] = type("Record", (Record,), {"__slots__": (), "name": path})
        return self.classes[path]

    def persistent_load(self, pid: Any) -> Record:
        return _Stored(*pid)


class _Stored(Record):
    """A storage, as `("storage", class, key, device, numbers of elements, ...)`; or a module with its source code."""

    __slots__ = ()
    name = "storage"


def read_inertly(content: bytes) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """Return the nested dictionaries of tensors in a file of torch.save, and the names of all other classes in it.

    Networks that were saved as objects become the dictionaries of their parameters, buffers and modules.

    Raises:
        Exception: of any kind, if the file is damaged or cannot be read without running code.
    """
    classes: dict[str, type[Record]] = {}
    value, storage = (_read_zip if zipfile.is_zipfile(io.BytesIO(content)) else _read_legacy)(content, classes)
    found = _Tensors(storage).inside(value)
    own = ("torch._utils.", "torch._tensor.", "collections.OrderedDict", "builtins.set", "_codecs.")
    other = [name for name in classes if name not in _DTYPES and not name.startswith(own) and "Storage" not in name]
    return found if isinstance(found, dict) else {}, tuple(other)


Storage = Callable[[Record], Tensor]  # the elements of a storage


def _read_zip(content: bytes, classes: dict[str, type[Record]]) -> tuple[Any, Storage]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise pickle.UnpicklingError("its archive is compressed")  # such an archive may be larger than the memory
    if "byteorder" in entries and archive.read(entries["byteorder"]).decode() != sys.byteorder:
        raise pickle.UnpicklingError("it was written on a machine with another order of bytes")
    kept: dict[str, Tensor] = {}

    def storage(stored: Record) -> Tensor:
        _, kind, key, *_ = stored.arguments
        if key not in kept:
            left = len(content) - sum(len(data) for data in kept.values())
            if entries[f"data/{key}"].file_size > left:
                raise pickle.UnpicklingError("its storages are larger than the file")
            kept[key] = _as_bytes(archive.read(entries[f"data/{key}"]))
        return kept[key].view(_dtype_of(kind))

    return _Unpickler(io.BytesIO(archive.read(entries["data.pkl"])), classes).load(), storage


def _read_legacy(content: bytes, classes: dict[str, type[Record]]) -> tuple[Any, Storage]:
    """Read the format before torch 1.6: five pickles one after the other, then the storages."""
    file = io.BytesIO(content)
    magic, protocol, system = (_Unpickler(file, classes).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise pickle.UnpicklingError("it is no file of torch.save")
    if system["little_endian"] != (sys.byteorder == "little"):
        raise pickle.UnpicklingError("it was written on a machine with another order of bytes")
    sizes: dict[Any, int] = {}

    class Unpickler(_Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            if pid[0] == "module":
                return pid[1]
            sizes[pid[2]] = _dtype_of(pid[1]).itemsize
            return super().persistent_load(pid)

    value = Unpickler(file, classes).load()
    start: dict[Any, int] = {}
    for key in _Unpickler(file, classes).load():
        (elements,) = struct.unpack("<q", file.read(8))
        start[key] = file.tell()
        if not 0 <= elements * sizes[key] <= len(content) - file.tell():
            raise pickle.UnpicklingError("its storages are larger than the file")
        file.seek(elements * sizes[key], io.SEEK_CUR)
    kept: dict[Any, Tensor] = {}

    def storage(stored: Record) -> Tensor:
        _, kind, key, _, _, view = stored.arguments
        if key not in kept:
            end = file.getbuffer()[start[key] :]
            (root,) = struct.unpack("<q", content[start[key] - 8 : start[key]])
            kept[key] = _as_bytes(bytes(end[: root * sizes[key]]))
        data = kept[key].view(_dtype_of(kind))
        return data if view is None else data[view[1] :][: view[2]]

    return value, storage


def _as_bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _dtype_of(kind: type[Record]) -> torch.dtype:
    return _STORAGES[kind.name.rpartition(".")[2]]


class _Tensors:
    """Builds the tensors that records describe.

    Args:
        storage: the elements of a storage.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.known: dict[int, Any] = {}  # by id of the value, which the file's content keeps alive

    def inside(self, value: Any) -> Any:
        """Return a tensor, the tensors in a dictionary or network by name, or None for all other values."""
        if id(value) in self.known:
            return self.known[id(value)]
        if isinstance(value, Record) and value.name in _REBUILD:
            self.known[id(value)] = _REBUILD[value.name](self, *value.arguments)
        elif (items := _items(value)) is not None:
            self.known[id(value)] = None  # a dictionary that contains itself
            inner = {key: self.inside(one) for key, one in items.items()}
            self.known[id(value)] = {key: one for key, one in inner.items() if one is not None} or None
        return self.known.get(id(value))

    def dense(self, stored: Record, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return self.storage(stored).as_strided(tuple(size), tuple(stride), offset)

    def dense_of_dtype(self, stored: Record, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        return self.storage(stored).view(_DTYPES[rest[2].name]).as_strided(tuple(size), tuple(stride), offset)

    def parameter(self, data: Any, *_: Any) -> Any:
        return self.inside(data)

    def of_subclass(self, function: type[Record], _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
        return _REBUILD[function.name](self, *arguments)


_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _Tensors.dense,
    "torch._utils._rebuild_tensor_v2": _Tensors.dense,
    "torch._utils._rebuild_tensor_v3": _Tensors.dense_of_dtype,
    "torch._utils._rebuild_parameter": _Tensors.parameter,
    "torch._utils._rebuild_parameter_with_state": _Tensors.parameter,
    "torch._tensor._rebuild_from_type_v2": _Tensors.of_subclass,
}


def _items(value: Any) -> dict[Any, Any] | None:
    """Return the items of a dictionary of any class, or the parameters, buffers and modules of a network, or None."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Record):
        return None
    state = value.state
    if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
        parts = {part: _items(state.get(part)) or {} for part in ("_parameters", "_buffers", "_modules")}
        not_saved = state.get("_non_persistent_buffers_set")
        names = not_saved.arguments[0] if isinstance(not_saved, Record) and not_saved.arguments else not_saved or ()
        buffers = {name: buffer for name, buffer in parts["_buffers"].items() if name not in names}
        return {**parts["_parameters"], **buffers, **parts["_modules"]}
    if value.items or not value.arguments:
        return value.items
    pairs = value.arguments[0]  # of OrderedDict([(key, value), ...])
    is_pairs = isinstance(pairs, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    return dict(pairs) if is_pairs else {}
