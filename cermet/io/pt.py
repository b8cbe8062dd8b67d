"""Reading the state dicts that ``torch.save`` writes: a zip of one pickle and raw storages.

The pickle is read by an interpreter of its own, which knows the few instructions and names that tensors and containers need;
anything else is refused before it can do anything. Nothing that a file names is ever imported.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from cermet import dtypes as dt
from cermet.devices import Device
from cermet.frontend.interop import from_array
from cermet.frontend.tensor import Size

__all__ = ["load_pt"]

_STORAGES = {
    "FloatStorage": dt.float32, "DoubleStorage": dt.float64, "HalfStorage": dt.float16, "BFloat16Storage": dt.bfloat16,
    "LongStorage": dt.int64, "IntStorage": dt.int32, "ShortStorage": dt.int16, "CharStorage": dt.int8, "ByteStorage": dt.uint8,
    "BoolStorage": dt.bool,
}  # fmt: skip
_TORCH_DTYPES = {d.name: d for d in dt.ALL}


class _Storage:
    """Bytes of one storage, and the dtype that its type names (None for an untyped one)."""

    def __init__(self, data: bytes, dtype: Any) -> None:
        self.data = data
        self.dtype = dtype


class _Kind:
    """Stands for a storage type of PyTorch."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype


def _rebuild(storage: _Storage, offset: int, size: Any, stride: Any, dtype: Any, swap: bool) -> Any:
    """The tensor that views ``storage`` so; a copy."""
    if not isinstance(storage, _Storage) or dtype is None:
        raise pickle.UnpicklingError("a tensor without a storage of a known dtype")
    flat = np.frombuffer(storage.data, dtype=dtype.numpy)
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= flat.size):
        raise pickle.UnpicklingError(
            f"a tensor of size {size}, stride {stride}, offset {offset} lies outside its storage of {flat.size} elements"
        )
    if 0 in size:
        return from_array(np.empty(size, dtype.numpy), dtype)
    view = np.lib.stride_tricks.as_strided(flat[offset:], size, [s * dtype.itemsize for s in stride], writeable=False)
    return from_array(np.ascontiguousarray(view.byteswap() if swap else view).reshape(size), dtype)


class _Reader(pickle._Unpickler):
    """The pickle interpreter of Python with few instructions, few names, and changes of objects by ``BUILD`` refused."""

    # Opcodes by name; what is not here cannot be executed.
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in (
            "PROTO", "FRAME", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG",
            "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_TUPLE",
            "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM",
            "SETITEMS", "EMPTY_SET", "ADDITEMS", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
            "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
        )
    }  # fmt: skip

    def __init__(self, file: Any, archive: zipfile.ZipFile, prefix: str, swap: bool) -> None:
        super().__init__(file)
        self._archive = archive
        self._prefix = prefix
        self._storages: dict[str, bytes] = {}
        self._known = _names(swap)
        self._callable = {id(x) for x in self._known.values() if callable(x)}

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # Python 2's names, which protocol 2 writes
        found = self._known.get((module, {"long": "int"}.get(name, name)))
        if found is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no tensor, number or container; save a state_dict() instead"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], _Kind):
            raise pickle.UnpicklingError(f"an unknown kind of reference: {pid!r}")
        key = str(pid[2])
        if key not in self._storages:
            self._storages[key] = self._archive.read(f"{self._prefix}data/{key}")
        return _Storage(self._storages[key], pid[1].dtype)

    def load_reduce(self) -> None:
        function, arguments = self.stack[-2:]
        if id(function) not in self._callable or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f"a call of {function!r}")
        self.stack[-2:] = [function(*arguments)]

    def load_build(self) -> None:
        # A state dict's _metadata is all that is built upon an object.
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is not OrderedDict or not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise pickle.UnpicklingError(f"attributes of a {type(target).__name__}")
        for name, value in state.items():
            setattr(target, name, value)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


def _names(swap: bool) -> dict[tuple[str, str], Any]:
    """What a file may name; functions made anew for each file."""

    def tensor(storage: Any, offset: int, size: Any, stride: Any, requires_grad: bool = False, *_: Any) -> Any:
        out = _rebuild(storage, offset, size, stride, getattr(storage, "dtype", None), swap)
        return out.requires_grad_() if requires_grad is True else out

    def tensor_of(storage: Any, offset: int, size: Any, stride: Any, requires_grad: bool, _: Any, dtype: Any, *__: Any) -> Any:
        out = _rebuild(storage, offset, size, stride, dtype if isinstance(dtype, dt.DType) else None, swap)
        return out.requires_grad_() if requires_grad is True else out

    def parameter(data: Any, requires_grad: bool = True, *_: Any) -> Any:
        return data.detach().requires_grad_() if requires_grad is True else data

    def mapping(*arguments: Any) -> Any:
        # A defaultdict's factory would be a callable of the file's choice.
        return dict(*arguments[1:])

    known: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict, ("collections", "Counter"): Counter, ("collections", "defaultdict"): mapping,
        ("builtins", "set"): set, ("builtins", "int"): int, ("builtins", "float"): float, ("torch", "Size"): Size,
        ("torch", "device"): _device, ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_tensor_v3"): tensor_of, ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch.storage", "UntypedStorage"): _Kind(None), ("torch", "UntypedStorage"): _Kind(None),
    }  # fmt: skip
    known.update({("torch", name): _Kind(d) for name, d in _STORAGES.items()})
    known.update({("torch", name): d for name, d in _TORCH_DTYPES.items()})
    return known


def _device(name: str, *_: Any) -> Any:
    """A device that is here; what was saved from another one comes to the CPU."""
    return Device("cpu")


def load_pt(file: io.BytesIO, name: str) -> Any:
    """What ``torch.save`` wrote to a zip file; tensors that shared a storage come back as copies.

    Raises:
        RuntimeError: for a damaged file or one of another kind. pickle.UnpicklingError: where it holds more than tensors and
            containers.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _load(archive, name)
    except (zipfile.BadZipFile, KeyError, EOFError) as e:
        raise RuntimeError(f"load: {name} begins like a zip file of torch.save, but it is damaged or incomplete: {e}") from e
    except pickle.UnpicklingError as e:
        raise pickle.UnpicklingError(f"load: {name} cannot be read as weights alone: {e}") from None


def _load(archive: zipfile.ZipFile, name: str) -> Any:
    entries = archive.namelist()
    found = next((n for n in entries if n == "data.pkl" or n.endswith("/data.pkl")), None)
    if found is None:
        raise RuntimeError(
            f"load: {name} is a zip file without a data.pkl in it (it has {', '.join(entries[:4])}); expected one of torch.save"
        )
    prefix = found[: -len("data.pkl")]
    if f"{prefix}constants.pkl" in entries:
        raise RuntimeError(f"load: {name} is a TorchScript program; save the state_dict() of the model with torch.save instead")
    big = f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") == b"big"
    try:
        return _Reader(io.BytesIO(archive.read(found)), archive, prefix, swap=big).load()
    except (KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError):
        raise
    except Exception as e:
        raise pickle.UnpicklingError(f"{type(e).__name__}: {e}") from e
