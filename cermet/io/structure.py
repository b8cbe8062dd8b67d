"""Saving and loading state dicts: safetensors with a JSON description of the structure, never pickle.

A file holds the tensors under readable names, so that any reader of safetensors finds them, and in its metadata how they were
nested in dicts, lists and tuples with numbers and texts between them. State dicts that PyTorch wrote (`.pt`, `.pth`) are read by
`cermet.io.pt`.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import stat
import struct
from collections import Counter, OrderedDict
from typing import Any

import numpy as np

from cermet import dtypes as dt
from cermet.devices import Device
from cermet.frontend.core import TensorBase, fn_of, node_of
from cermet.frontend.gradients import Accumulate
from cermet.frontend.interop import from_array
from cermet.frontend.tensor import Size
from cermet.io.pt import load_pt
from cermet.lazy.evaluate import array_of, realize

__all__ = ["load", "save"]

_STRUCTURE = "cermet.structure"
_DTYPES = {
    "BOOL": dt.bool, "U8": dt.uint8, "I8": dt.int8, "I16": dt.int16, "I32": dt.int32, "I64": dt.int64, "F16": dt.float16,
    "BF16": dt.bfloat16, "F32": dt.float32, "F64": dt.float64,
}  # fmt: skip
_DICTS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def _library() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as e:
        raise ImportError("saving and loading need the safetensors package: pip install safetensors") from e
    return safetensors


# ---------------------------------------------------------------------------------------------------------------- save


def save(obj: Any, f: Any, *_: Any, **__: Any) -> None:
    """Write a state dict: a tensor, or dicts, lists and tuples of tensors, numbers, texts, None, dtypes, devices and sizes.

    A file is written beside its final place and moved there when it is complete: whoever looks sees the old one or the new one.
    Tensors are stored by value (a view is stored as what it shows); the same tensor twice is stored once. Dicts of other classes
    come back as plain dicts.

    Args:
        f: a path, or an open binary file. Further arguments of ``torch.save`` are accepted, without effect.

    Raises:
        TypeError: for objects that are none of these, naming where in ``obj`` they stand.
        ValueError: for a structure that contains itself.
    """
    writer = _Writer()
    structure = writer.encode(obj, ())
    realize(list(writer.nodes.values()))
    arrays = {name: np.ascontiguousarray(array_of(n)).reshape(n.meta.shape) for name, n in writer.nodes.items()}
    metadata = {"format": "cermet", _STRUCTURE: json.dumps(structure, allow_nan=False, separators=(",", ":"))}
    library = _library()
    if hasattr(f, "write"):
        f.write(library.numpy.save(arrays, metadata))
        return
    _write_file(os.path.realpath(os.fspath(f)), lambda path: library.numpy.save_file(arrays, path, metadata))


def _write_file(path: str, write: Any) -> None:
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        write(path)  # a device or a pipe cannot be replaced
        return
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.tmp")
    # Made here and not by the library: an exclusive file with the permissions that the user's mask gives.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        write(temporary)
        with open(temporary, "rb") as done:
            os.fsync(done.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


class _Writer:
    """Names tensors and describes the structure around them.

    Plain JSON stands for texts, finite numbers, booleans and None; everything else is an object of one letter that names its
    kind.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self._names: dict[Any, str] = {}
        self._open: set[int] = set()

    def encode(self, x: Any, path: tuple[str, ...]) -> Any:
        if x is None or isinstance(x, bool | str):
            return x
        if isinstance(x, np.bool_):
            return bool(x)
        if isinstance(x, int | np.integer):
            return int(x)
        if isinstance(x, float | np.floating):
            return float(x) if math.isfinite(x) else {"f": repr(float(x))}
        if isinstance(x, TensorBase):
            return self._tensor(x, path)
        if isinstance(x, dt.DType):
            return {"y": x.name}
        if isinstance(x, Device):
            return {"v": str(x)}
        if isinstance(x, dict | list | tuple | set):
            return self._container(x, path)
        raise TypeError(
            f"save: cannot save {type(x).__name__} at {_at(path)}; state dicts hold tensors, numbers, texts, None, and dicts, "
            f"lists and tuples of them{'; convert it with cermet.from_numpy' if isinstance(x, np.ndarray) else ''}"
        )

    def _tensor(self, x: Any, path: tuple[str, ...]) -> dict[str, Any]:
        node = node_of(x)
        name = self._names.get(node)
        if name is None:
            wanted = name = ".".join(path) or "tensor"
            count = 2
            while name in self.nodes or name == "__metadata__":
                name = f"{wanted}#{count}"
                count += 1
            self.nodes[name] = node
            self._names[node] = name
        return {"t": name, "g": 1} if type(fn_of(x)) is Accumulate else {"t": name}

    def _container(self, x: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if id(x) in self._open:
            raise ValueError(f"save: the structure contains itself at {_at(path)}")
        self._open.add(id(x))
        try:
            if isinstance(x, dict):
                return self._dict(x, path)
            kind = "s" if isinstance(x, set) else "z" if isinstance(x, Size) else "u" if isinstance(x, tuple) else "l"
            return {kind: [self.encode(v, (*path, str(k))) for k, v in enumerate(x)]}
        finally:
            self._open.discard(id(x))

    def _dict(self, x: dict[Any, Any], path: tuple[str, ...]) -> dict[str, Any]:
        items = []
        for k, v in x.items():
            if isinstance(k, TensorBase | dict | list | set):
                raise TypeError(
                    f"save: a {type(k).__name__} is a key of the dict at {_at(path)}; keys are texts, numbers, None or tuples of "
                    "them"
                )
            items.append([self.encode(k, (*path, "key")), self.encode(v, (*path, str(k)))])
        out: dict[str, Any] = {"d": items}
        kind = next((name for name, c in _DICTS.items() if type(x) is c), "dict")
        if kind != "dict":
            out["c"] = kind
        if isinstance(getattr(x, "_metadata", None), dict):  # a module's versions, see Module.state_dict
            out["m"] = self.encode(x._metadata, (*path, "_metadata"))  # type: ignore[attr-defined]
        return out


def _at(path: tuple[str, ...]) -> str:
    return "".join(f"[{p!r}]" for p in path) or "the top"


# ---------------------------------------------------------------------------------------------------------------- load


def load(
    f: Any,
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = True,
    mmap: bool | None = None,
    **_: Any,
) -> Any:
    """Read what `save` wrote, a safetensors file of anybody's (as a flat dict), or a state dict that PyTorch wrote. No code in a
    file is ever run.

    Args:
        f: a path, or an open binary file. map_location, mmap: accepted; tensors come to the CPU.
        weights_only: must not be False: pickled objects other than tensors and containers are not read.

    Raises:
        RuntimeError: for a file that is none of these, incomplete or damaged, saying what was found and what was expected.
        pickle.UnpicklingError: for a PyTorch file that holds more than tensors and containers.
    """
    if weights_only is False or pickle_module is not None:
        raise ValueError("load: pickled objects are never read; leave weights_only at True and pickle_module at None")
    if hasattr(f, "read"):
        data, name = f.read(), str(getattr(f, "name", "the given file object"))
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"load: {name} is open as text; open it with mode 'rb'")
    else:
        name = os.fspath(f)
        with open(name, "rb") as opened:
            data = opened.read()
    if data[:4] == _ZIP:
        return load_pt(io.BytesIO(data), str(name))
    return _load_safetensors(data, str(name))


def _load_safetensors(data: Any, name: str) -> Any:
    metadata = _header(data, name).get("__metadata__") or {}
    library = _library()
    try:
        entries = library.deserialize(bytes(data))
    except Exception as e:
        raise RuntimeError(f"load: {name} begins like a safetensors file, but it is damaged or incomplete: {e}") from e
    tensors = {key: _tensor(entry, key, name) for key, entry in entries}
    text = metadata.get(_STRUCTURE)
    if text is None:
        return tensors
    try:
        return _decode(json.loads(text), tensors)
    except (KeyError, ValueError, TypeError, AttributeError) as e:
        raise RuntimeError(f"load: {name} has a structure that this version of cermet cannot read: {e}") from e


def _header(data: Any, name: str) -> dict[str, Any]:
    """The header of a safetensors file: a length of 8 bytes, and JSON."""
    expected = "expected a safetensors file, or a zip file of torch.save"
    if len(data) < 8:
        raise RuntimeError(f"load: {name} has {len(data)} bytes; {expected}")
    (length,) = struct.unpack("<Q", data[:8])
    begin = bytes(data[8:9])
    if begin != b"{":
        if bytes(data[:1]) == _PICKLE:
            raise RuntimeError(
                f"load: {name} is a pickle, perhaps of torch.save before PyTorch 1.6; {expected}. Save it again with a newer "
                "PyTorch"
            )
        raise RuntimeError(f"load: {name} begins with {bytes(data[:8])!r}; {expected}")
    if length > len(data) - 8:
        raise RuntimeError(f"load: {name} is incomplete: its header has {length} bytes, but only {len(data) - 8} bytes follow")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except ValueError as e:
        raise RuntimeError(f"load: {name} has a damaged header: {e}; {expected}") from e
    return header if isinstance(header, dict) else {}


def _tensor(entry: Any, key: str, name: str) -> Any:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise RuntimeError(f"load: tensor {key!r} in {name} has dtype {entry['dtype']}; expected one of {', '.join(_DTYPES)}")
    array = np.frombuffer(entry["data"], dtype=dtype.numpy.newbyteorder("<") if dtype.itemsize > 1 else dtype.numpy)
    return from_array(array.reshape(entry["shape"]), dtype)


def _decode(x: Any, tensors: dict[str, Any]) -> Any:
    if not isinstance(x, dict):
        return x
    if "t" in x:
        t = tensors[x["t"]].detach().clone()  # a handle of its own: a write to one must not be seen by another
        return t.requires_grad_() if "g" in x else t
    if "d" in x:
        out = _DICTS[x.get("c", "dict")]()
        for k, v in x["d"]:
            out[_decode(k, tensors)] = _decode(v, tensors)
        if "m" in x:
            out._metadata = _decode(x["m"], tensors)  # type: ignore[attr-defined]
        return out
    ((kind, value),) = x.items()
    if kind == "f":
        return float(value)
    if kind == "y":
        return {d.name: d for d in dt.ALL}[value]
    if kind == "v":
        return Device(value)
    return {"l": list, "u": tuple, "z": Size, "s": set}[kind]([_decode(v, tensors) for v in value])
