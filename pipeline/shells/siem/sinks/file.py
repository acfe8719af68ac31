"""JSON lines in a file that a forwarder follows: appended, on the disk before they count, renamed by size.

    NAME          the file that is written
    NAME.1 ...    renamed ones, 1 the youngest; `keep` of them

A batch is written whole or not at all, as far as a reader of whole lines can tell: what a crash or a full disk has cut off is
cut back to the end of the last whole line before anything else is written. A crash between two renames leaves a number that is
free; the next rotation moves only what is before it. `.NAME.lock` is held meanwhile: `wardline siem test` writes there too.
"""

import asyncio
import contextlib
import fcntl
import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from pipeline.core.ocsf import Alert, fitted
from pipeline.core.siem.feeder import Batch
from pipeline.core.siem.framing import json_lines
from schemas.config import Siem
from schemas.errors import PeerFault
from schemas.process import sync_folder

MODE: Final = 0o640
"""A forwarder with a user of its own reads it by the group of the folder (setgid)."""

TAIL_BYTES: Final = 1 << 20


class FileSink:
    """One file."""

    def __init__(self, table: Siem, path: Path, thread: Executor) -> None:
        self.where = str(path)
        self._path = path
        self._rotate_bytes = table.rotate_bytes
        self._keep = table.keep
        self._thread = thread

    def pack(self, alert: Alert) -> bytes:
        """As large as any event may be."""
        return fitted(alert)

    async def take(self, batch: Batch) -> str:
        """Append a batch. Raises PeerFault while the disk does not take it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.append, batch)

    def append(self, batch: Batch) -> str:
        """The same, blocking."""
        data = json_lines(batch.events)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            held = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                self._append(data)
            finally:
                os.close(held)
        except OSError as fault:
            raise PeerFault(f"{self._path}: cannot be written: {(fault.strerror or str(fault)).lower()}") from fault
        return f"{len(batch.events)} lines, {len(data)} bytes, on the disk"

    def _append(self, data: bytes) -> None:
        self._rotate(len(data))
        new = not self._path.exists()
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        try:
            if new:
                os.fchmod(handle, MODE)
            self._write(handle, data, _whole_lines(handle))
        finally:
            os.close(handle)
        if new:
            sync_folder(self._path.parent)

    def _write(self, handle: int, data: bytes, size: int) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError:
            # what is there of the batch goes again; a crash before that leaves it to `_whole_lines`
            with contextlib.suppress(OSError):
                os.ftruncate(handle, size)
            raise

    def _rotate(self, more: int) -> None:
        """Rename the file when it would grow beyond its size. A batch that is larger than that has a file of its own."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if not size or size + more <= self._rotate_bytes:
            return
        free = next((n for n in range(1, self._keep + 1) if not self._old(n).exists()), None)
        if free is None:
            self._old(self._keep).unlink()
            free = self._keep
        for number in range(free, 1, -1):
            os.rename(self._old(number - 1), self._old(number))
        os.rename(self._path, self._old(1))
        sync_folder(self._path.parent)
        number = self._keep + 1
        while self._old(number).exists():  # `keep` was larger before
            self._old(number).unlink()
            number += 1

    def _old(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    async def close(self) -> None:
        """Nothing is open between two batches."""


def _whole_lines(handle: int) -> int:
    """Cut off what follows the last whole line; returns the size then."""
    size = os.fstat(handle).st_size
    end = size
    while end:
        start = max(0, end - TAIL_BYTES)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end != size:
        os.ftruncate(handle, end)
    return end
