"""What every process of ours does the same way: its run file, its lock, private files, and leaving with its parent.

This is the one module of `schemas` that does IO, so that enforcers and pipeline share it without importing each other.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from schemas.errors import OperatorFault

_PR_SET_PDEATHSIG: Final = 1
PARENT_POLL_S: Final = 0.8
"""Twice this, the look and the grace, is how long a process may outlive its parent: below the two seconds that are promised."""

OPERATOR: Final = 2
"""Exit code of a process that somebody must put right first."""

LOG_BYTES_MAX: Final = 16 << 20
"""Bytes of one log file; then it becomes NAME.log.1 and a new one begins, so a child has at most twice this on disk."""

TAIL_BYTES: Final = 4096


def private_dir(path: Path) -> Path:
    """Make a folder (and its missing parents) that only its owner can enter."""
    for part in (*reversed(path.parents), path):
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)
    return path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace a file as a whole: a crash leaves the old one or the new one, never half of either."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk: what was renamed or removed there stays so after a loss of power."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_run_file(path: Path, fields: Mapping[str, Any]) -> None:
    """Say what this process is: at least `name`, `pid`, `state` (`starting`, `ready`, `stopping`), `address`."""
    write_atomic(path, json.dumps(dict(fields)).encode(), sync=False)


def read_run_file(path: Path) -> dict[str, Any] | None:
    """What a process said of itself, with `alive`; None when there is no such file or it is not ours to read."""
    try:
        value = json.loads(path.read_bytes())
        pid = int(value["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    value["alive"] = is_alive(pid)
    return dict(value)


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            state = file.read(4096).rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in b"ZX"


def unix_socket(path: Path, backlog: int) -> socket.socket:
    """Listen on `path`, which only this user may open. An old file there is of a process that is gone: we hold the lock.

    Raises OperatorFault where that cannot be.
    """
    folder = os.open(private_dir(path.parent), os.O_RDONLY | os.O_DIRECTORY)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        # a socket's address has 107 bytes at most, a home may have more
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
        made.listen(backlog)
    except OSError as fault:
        made.close()
        raise OperatorFault(f"{path}: cannot be listened on: {(fault.strerror or str(fault)).lower()}") from fault
    finally:
        os.umask(before)
        os.close(folder)
    made.setblocking(False)
    return made


class Lock:
    """A file that one process holds at a time; it goes with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def take(self) -> bool:
        """Hold the lock and write our pid into it; False when another process holds it."""
        private_dir(self.path.parent)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return True

    def holder(self) -> str:
        """The pid that the holder wrote, or `unknown`."""
        try:
            return self.path.read_text().strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        """Let go; the file stays, since removing it would let two holders in."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def take_or_fail(path: Path, what: str) -> Lock:
    """Hold `path`, or raise OperatorFault naming the process that does."""
    lock = Lock(path)
    if not lock.take():
        raise OperatorFault(f"{what} is held by process {lock.holder()} (`{path}`)")
    return lock


class _NotHere:
    """A finder (`sys.meta_path`) of modules that are left out."""

    names: Final[set[str]] = set()

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Say nothing of other modules. Raises ModuleNotFoundError for these, as if they were not installed."""
        if name in cls.names:
            raise ModuleNotFoundError(f"{name} is left out of this process", name=name)


def leave_out(name: str) -> None:
    """Let a module that others use when they find it not be found in this process; nothing, where it is here already."""
    if name not in sys.modules:
        if not _NotHere.names:
            sys.meta_path.insert(0, _NotHere)
        _NotHere.names.add(name)


def leave_with_parent() -> None:
    """End this process (SIGTERM, then by force) within two seconds of its parent's end, however the parent ends.

    The kernel's signal comes at once but is lost when the parent dies before the call, so a thread also looks.
    Does nothing when WARDLINE_PARENT is not set: a process that was started alone belongs to nobody.
    """
    said = os.environ.get("WARDLINE_PARENT")
    if not said:
        return
    parent = int(said)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PARENT_POLL_S)
        os._exit(70)

    threading.Thread(target=look, name="parent-watch", daemon=True).start()


def port_problem(listen: str, port: int) -> OSError | None:
    """Why we could not have a port of an address for ourselves; None when we could.

    Asked without SO_REUSEPORT, which would let the doors of two homes share a port, and clients reach either.
    """
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError as fault:
            return fault
    return None


# -- what a child prints -------------------------------------------------------------------------------------------------


def rotate(path: Path) -> None:
    """Keep a log within LOG_BYTES_MAX: copy it to NAME.log.1 and empty it, so that whoever has it open can go on.

    A line that is written between the two steps is lost; on a full disk the old log goes without a copy.
    """
    try:
        if path.stat().st_size <= LOG_BYTES_MAX:
            return
        with contextlib.suppress(OSError):
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return


def last_line(path: Path) -> str:
    """The last line that is not empty, or nothing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
