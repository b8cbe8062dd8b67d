"""The walker as a built-in function of CPython: a call costs a tenth of one through ctypes, which is most of what a small program costs.

``cermet_call(table, values, work, pool, timings)`` takes Python ints (``values``: bytes), lets go of the interpreter's lock, walks, and
returns None. It is written in LLVM IR against functions of the stable ABI; where an interpreter lacks one, ctypes stays in use.
"""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["SYMBOLS", "builtin", "source", "symbols"]

SYMBOLS = (
    "PyLong_AsLongLong", "PyBytes_AsString", "PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_Occurred", "PyErr_BadArgument",
    "Py_IncRef",
)  # fmt: skip

_SOURCE = """
declare i64 @PyLong_AsLongLong(ptr)
declare ptr @PyBytes_AsString(ptr)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyErr_Occurred()
declare i32 @PyErr_BadArgument()
declare void @Py_IncRef(ptr)

; self is None, which is also what is returned.
define ptr @cermet_call(ptr %self, ptr %args, i64 %count) nounwind {
entry:
  %five = icmp eq i64 %count, 5
  br i1 %five, label %convert, label %wrong
wrong:
  %told = call i32 @PyErr_BadArgument()
  ret ptr null
convert:
  %table.object = load ptr, ptr %args
  %values.at = getelementptr ptr, ptr %args, i64 1
  %values.object = load ptr, ptr %values.at
  %work.at = getelementptr ptr, ptr %args, i64 2
  %work.object = load ptr, ptr %work.at
  %pool.at = getelementptr ptr, ptr %args, i64 3
  %pool.object = load ptr, ptr %pool.at
  %timings.at = getelementptr ptr, ptr %args, i64 4
  %timings.object = load ptr, ptr %timings.at
  %table.int = call i64 @PyLong_AsLongLong(ptr %table.object)
  %values = call ptr @PyBytes_AsString(ptr %values.object)
  %work.int = call i64 @PyLong_AsLongLong(ptr %work.object)
  %pool.int = call i64 @PyLong_AsLongLong(ptr %pool.object)
  %timings.int = call i64 @PyLong_AsLongLong(ptr %timings.object)
  %error = call ptr @PyErr_Occurred()
  %failed = icmp ne ptr %error, null
  br i1 %failed, label %fail, label %run
fail:
  ret ptr null
run:
  %table = inttoptr i64 %table.int to ptr
  %work = inttoptr i64 %work.int to ptr
  %pool = inttoptr i64 %pool.int to ptr
  %timings = inttoptr i64 %timings.int to ptr
  %state = call ptr @PyEval_SaveThread()
  call void @cermet_run(ptr %table, ptr %values, ptr %work, ptr %pool, ptr %timings)
  call void @PyEval_RestoreThread(ptr %state)
  call void @Py_IncRef(ptr %self)
  ret ptr %self
}
"""

_METH_FASTCALL = 0x80


class _MethodDef(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_kept: list[Any] = []  # a built-in function refers to its definition for as long as it lives


def symbols() -> dict[str, int] | None:
    """The addresses of the interpreter's functions that the source calls; None where it is not CPython or lacks one."""
    api = getattr(ctypes, "pythonapi", None)
    if api is None or not all(hasattr(api, name) for name in (*SYMBOLS, "PyCFunction_NewEx")):
        return None
    found = {name: ctypes.cast(getattr(api, name), ctypes.c_void_p).value for name in SYMBOLS}
    return {name: address for name, address in found.items() if address} if all(found.values()) else None


def source() -> str:
    """The function's IR, to be compiled together with the walker's."""
    return _SOURCE


def builtin(address: int) -> Any:
    """The function as Python calls it."""
    definition = _MethodDef(b"cermet_call", address, _METH_FASTCALL, None)
    _kept.append(definition)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    return make(ctypes.addressof(definition), None, None)
