"""Machine code on disk: a folder of object files that is read with suspicion and never needed.

A file is ``magic · checksum · key hash · object``; its name is the key hash. Anything else found under that name
(truncated, altered, of another format, another user's, a link) is as if it were not there and is written over. Files
appear under their names by an atomic rename, so that processes may share the folder. Whatever goes wrong with the
disk costs a compilation, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import tempfile
import threading
from pathlib import Path

__all__ = ["ObjectCache", "outside_symbols"]

_MAGIC = b"CERMETO1"
_DIGEST = 32
_HEADER = len(_MAGIC) + 2 * _DIGEST
_SUFFIX = ".o"


def _hash(*parts: bytes) -> bytes:
    h = hashlib.blake2b(digest_size=_DIGEST)
    for part in parts:
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.digest()


class ObjectCache:
    """Object files under ``folder``, at most about ``limit`` bytes of them; the least recently used go first.

    The folder is made for its owner alone. Where it cannot be made, or belongs to someone else, or others may write
    to it, the cache is disabled: `get` finds nothing and `put` does nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._lock = threading.Lock()
        self._total: int | None = None  # bytes in the folder, once counted
        self.enabled = self._prepare()

    def _prepare(self) -> bool:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = os.lstat(self.folder)
            if not stat.S_ISDIR(info.st_mode):
                return False
            if hasattr(os, "getuid"):
                if info.st_uid != os.getuid():
                    return False
                if info.st_mode & 0o077:
                    os.chmod(self.folder, 0o700)
            return os.access(self.folder, os.R_OK | os.W_OK | os.X_OK)
        except OSError:
            return False

    def path(self, key: bytes) -> Path:
        """Where the object of ``key`` is kept."""
        return self.folder / (_hash(key).hex() + _SUFFIX)

    def get(self, key: bytes) -> bytes | None:
        """The object kept under ``key``, or None."""
        if not self.enabled:
            return None
        path = self.path(key)
        data = _read(path)
        if data is None or len(data) <= _HEADER or not data.startswith(_MAGIC):
            return None
        start = len(_MAGIC)
        checksum, name, body = data[start : start + _DIGEST], data[start + _DIGEST : _HEADER], data[_HEADER:]
        if name != _hash(key) or checksum != _hash(name, body):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the mark of recent use
        return body

    def put(self, key: bytes, body: bytes) -> None:
        """Keep ``body`` under ``key``."""
        if not self.enabled or len(body) + _HEADER > self.limit:
            return
        name = _hash(key)
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(prefix=".new-", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + _hash(name, body) + name + body)
            os.replace(temporary, self.path(key))
        except OSError:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            return
        self._bound(len(body) + _HEADER)

    def _bound(self, added: int) -> None:
        """Keep the folder within its limit; it is listed only when the running total passes it."""
        with self._lock:
            if self._total is not None:
                self._total += added
                if self._total <= self.limit:
                    return
            files = self._files()
            total = sum(size for _, size, _ in files)
            if total > self.limit:
                # Down to four fifths, so that not every put lists the folder.
                for _, size, path in sorted(files):
                    if total <= self.limit * 4 // 5:
                        break
                    with contextlib.suppress(OSError):
                        path.unlink()
                        total -= size
            self._total = total

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        info = entry.stat(follow_symlinks=False)
                        found.append((info.st_mtime, info.st_size, Path(entry.path)))
        return found


def outside_symbols(body: bytes) -> list[str]:
    """The names that an ELF object needs from elsewhere; none are reported for other formats."""
    if body[:6] != b"\x7fELF\x02\x01":
        return []
    sections, (size, count) = struct.unpack_from("<Q", body, 40)[0], struct.unpack_from("<HH", body, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", body, sections + k * size) for k in range(count)]
    found = []
    for header in headers:
        if header[1] != 2:  # SHT_SYMTAB
            continue
        strings = headers[header[6]][4]
        for at in range(header[4] + 24, header[4] + header[5], 24):
            name, _, _, section = struct.unpack_from("<IBBH", body, at)
            if section == 0 and name:
                start = strings + name
                found.append(body[start : body.index(b"\0", start)].decode())
    return [name for name in found if name != "_GLOBAL_OFFSET_TABLE_"]


def _read(path: Path) -> bytes | None:
    """The bytes of a regular file of ours; None for anything else."""
    try:
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        )
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode) or (hasattr(os, "getuid") and info.st_uid != os.getuid()):
                return None
            return file.read()
        except OSError:
            return None
