"""Run numba-compiled kernels on torch's own threads.

A second thread pool would oversubscribe the CPU, because waiting threads keep spinning. So a kernel is a C function
that torch's OpenMP runtime calls on each of its threads. The kernel asks the runtime for its thread number and takes
its part of the work. No C compiler is needed: numba contains one.
"""

# pyright: basic

import ctypes
import functools
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor, get_num_threads

MIN_PARALLEL_NUMEL = 32768  # elements below which one thread is faster; torch's own grain size
FASTMATH_FLAGS = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity are preserved

# numba's storage type of each dtype; numba has no bfloat16.
_STORAGE = {torch.float32: types.float32, torch.float64: types.float64, torch.bfloat16: types.uint16}

_CALLED = ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")  # functions that kernels call


def supported_types() -> tuple[torch.dtype, ...]:
    """Return the dtypes of maps that the kernels support."""
    return tuple(_STORAGE)


@functools.cache
def runtime() -> ctypes.CDLL | None:
    """Return torch's own OpenMP library, or None if it is not in torch/lib."""
    for file in sorted(Path(torch.__file__).parent.glob("lib/lib*omp*")):
        try:
            library = ctypes.CDLL(str(file))
        except OSError:  # a file that is no library, such as a .lib of Windows
            continue
        if all(hasattr(library, name) for name in ("GOMP_parallel", *_CALLED)):
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
            for name in _CALLED:
                address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
                llvmlite.binding.add_symbol(f"gatewise_{name}", address)
            return library
    return None


thread_number = types.ExternalFunction("gatewise_omp_get_thread_num", types.int32())
thread_count = types.ExternalFunction("gatewise_omp_get_num_threads", types.int32())
wait_for_all = types.ExternalFunction("gatewise_GOMP_barrier", types.void())


@intrinsic
def words(typing, arguments):  # noqa: ARG001
    """Return a kernel's arguments as 64-bit words; the kernel's pointer has the element type of its maps instead."""

    def generate(context, builder, signature, args):  # noqa: ARG001
        return builder.bitcast(args[0], context.get_value_type(types.CPointer(types.int64)))

    return types.CPointer(types.int64)(arguments), generate


@intrinsic
def stored_at(typing, arguments, address):  # noqa: ARG001
    """Return an address as a pointer to map elements."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return arguments(arguments, address), generate


@intrinsic
def real_at(typing, arguments, address):  # noqa: ARG001
    """Return an address as a pointer to per-channel values: float64 for float64 maps, else float32."""
    real = types.CPointer(types.float64 if arguments.dtype == types.float64 else types.float32)

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return real(arguments, address), generate


@intrinsic
def address_of_float64(typing, address):  # noqa: ARG001
    """Return an address as a pointer to sums, which are float64 for every dtype of map."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(address), generate


@intrinsic
def as_float64(typing, word):  # noqa: ARG001
    """Return the number that the bits of a 64-bit word are."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return types.float64(word), generate


class Kernel:
    """A function of a pointer to its arguments, compiled on first use for each dtype of map."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        function.__qualname__ += f"_{_sources()}"
        self.compiled: dict[torch.dtype, Any] = {}
        self.__doc__ = function.__doc__

    def compile_for(self, dtype: torch.dtype) -> Any:
        """Compile the function for maps of `dtype`; return callables for all threads and for this thread only."""
        library: Any = runtime()  # callers have checked that it exists
        compiled = _compile(self.function, types.void(types.CPointer(_STORAGE[dtype])))
        self.compiled[dtype] = functools.partial(library.GOMP_parallel, compiled.address), _ALONE(compiled.address)
        return self.compiled[dtype]

    def __call__(self, like: Tensor, *words: Tensor | int | None, reals: tuple[float, ...] = ()) -> None:
        """Run on torch's threads, or only on this thread if the map `like` is small.

        The kernel reads its arguments from a block of 64-bit words: addresses of tensors (0 for None), integers, and
        then the `reals`.
        """
        values = [word if type(word) is int else 0 if word is None else word.data_ptr() for word in words]  # type: ignore[union-attr]
        block = _block_of(len(values), len(reals)).pack(*values, *reals)
        together, alone = self.compiled.get(like.dtype) or self.compile_for(like.dtype)
        threads = get_num_threads()
        if threads > 1 and like.numel() >= MIN_PARALLEL_NUMEL:
            together(block, threads, 0)
        else:
            alone(block)


@functools.cache
def _block_of(words: int, reals: int) -> struct.Struct:
    """Return the memory layout of a kernel's arguments."""
    return struct.Struct(f"={words}q{reals}d")


def _compile(function: Callable[..., None], signature: Any) -> Any:
    """Compile the function, using numba's on-disk cache if a folder is writable."""
    try:
        return numba.cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no writable cache folder
        return numba.cfunc(signature, error_model="numpy")(function)


@functools.cache
def _sources() -> str:
    """Return a checksum of all kernel sources: numba's cache checks a kernel's own file, but not the files it calls."""
    content = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(content).hexdigest()[:12]


_ALONE = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
