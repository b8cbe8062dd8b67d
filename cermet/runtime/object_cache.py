"""Compiled objects on disk: a folder of files named by the hash of their key.

Machine code is run without further checks, so it is taken only from files that nobody but this user can have written: folder and
file belong to the user, are writable by nobody else and are no links; the contents carry a checksum over name and data. Whatever
does not fit (cut short, foreign, of another format) counts as absent, and is compiled anew and replaced. Files are
written under a temporary name and renamed, so that processes may share a folder. A folder that cannot be used (read-only home,
wrong owner, full disk) turns the cache off and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time

from cermet import config

__all__ = ["load", "store", "trim"]

_MAGIC = b"CERMET1\n"
_SUFFIX = ".obj"
_TOUCH_AFTER = 3600.0  # seconds: how exact "least recently used" is; less would mean a write for each read
_TRIM_EVERY = 64
_stores = 0


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _checksum(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + data).digest()


def _private(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _folder(create: bool) -> str | None:
    """The folder, if it can be trusted."""
    if not config.disk_cache:
        return None
    folder = os.path.join(config.cache_dir, "objects")
    try:
        if create:
            os.makedirs(config.cache_dir, mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, mode=0o700)
        status = os.lstat(folder)
    except OSError:
        return None
    return folder if stat.S_ISDIR(status.st_mode) and _private(status) else None


def load(key: str) -> bytes | None:
    """What was stored under ``key``, or ``None``."""
    folder = _folder(create=False)
    if folder is None:
        return None
    name = _name(key)
    path = os.path.join(folder, name + _SUFFIX)
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) and _private(status)):
                return None
            contents = file.read()
            if time.time() - status.st_mtime > _TOUCH_AFTER:
                with contextlib.suppress(OSError):
                    os.utime(path)
    except OSError:
        return None
    head = len(_MAGIC) + 32
    data = contents[head:]
    if contents[:head] != _MAGIC + _checksum(name, data):
        return None
    return data


def store(key: str, data: bytes) -> None:
    """Keep ``data`` under ``key``. Never fails: without a usable folder it does nothing."""
    global _stores
    folder = _folder(create=True)
    if folder is None:
        return
    name = _name(key)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(_MAGIC + _checksum(name, data) + data)
            os.replace(temporary, os.path.join(folder, name + _SUFFIX))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        if config.log and "cache" in config.log:
            print(f"cermet: cache: not stored: {error}", file=sys.stderr)
        return
    if _stores % _TRIM_EVERY == 0:  # at the first store of a process too: short-lived processes must not fill the disk
        trim()
    _stores += 1


def trim() -> None:
    """Remove the least recently used files until the folder holds at most ``config.disk_cache_bytes``."""
    folder = _folder(create=False)
    if folder is None:
        return
    files = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in files)
    # Temporary files of a process that died are removed with the others, by their age.
    for _, size, path in sorted(files):
        if total <= config.disk_cache_bytes:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size
