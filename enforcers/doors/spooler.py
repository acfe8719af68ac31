"""A door's folder under its host: `hosts/NAME/doors/BOOT`, with a lock that says that the door lives, and its spool.

    .tmp-BOOT/lock, held  ->  BOOT/  ->  00000001.seg ...  ->  door.json  ->  lock let go

The host finds the folder by its name, and knows by the lock whether the door lives: the lock is held before the name is there.
A door that ends without `door.json` is adopted: the host records its open calls as lost and writes the file in its place.
"""

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Final

from enforcers.core.call import Append, Complete
from ext.spool import SpoolWriter
from schemas.config import Enforcer
from schemas.errors import PeerFault
from schemas.process import Lock, private_dir, write_atomic

PREPARE_S: Final = 0.05
"""How often a thread looks whether the next segment is ready: a door fills one in no less than some tenths of a second."""

STALE_S: Final = 60.0
"""A folder that has been without its name for so long, and without a holder, is what a crash left."""


class Spooler:
    """One start of a door. Not for several threads; the thread inside only makes segments ready.

    Raises SpoolFull when there is no room for a first segment; then nothing is left behind.
    """

    def __init__(self, host_folder: Path, boot: int, limits: Enforcer) -> None:
        doors = private_dir(host_folder / "doors")
        _sweep(doors)
        beside, self.folder = doors / f".tmp-{boot:016x}", doors / f"{boot:016x}"
        private_dir(beside)
        self._lock = Lock(beside / "lock")
        if not self._lock.take():
            raise PeerFault(f"{beside}: is held by process {self._lock.holder()}")
        try:
            self._writer = SpoolWriter(
                str(beside), boot, limits.segment_bytes, limits.spool_bytes, limits.spool_reserved_bytes
            )  # fmt: skip
            os.rename(beside, self.folder)
            _sync(doors)  # whoever resumes asks this folder how far it got
        except BaseException:
            self._lock.release()
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self.append: Append = self._writer.put
        """Writes one record and returns its seq; when it returns, the record outlives this process.

        Raises SpoolFull when there is no room and AgentFault when it is too long; then nothing was written.
        """
        self.complete: Complete = self._writer.complete
        """Writes the end of a call into its decision's record; False where it must be a record of its own."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_ready, name="spool-ready", daemon=True)
        self._thread.start()

    @property
    def boot(self) -> int:
        """What this start of the door is called."""
        return self._writer.boot

    @property
    def last_seq(self) -> int:
        """The seq of the last record, 0 before the first."""
        return self._writer.last_seq

    @property
    def last_ref(self) -> int:
        """The highest `ref` that was recorded."""
        return self._writer.last_ref

    def _keep_ready(self) -> None:
        while not self._stop.wait(PREPARE_S):
            # no room, or no disk: the append that needs the segment says so itself
            with contextlib.suppress(PeerFault, OSError):
                self._writer.prepare()

    def close(self) -> None:
        """End the door cleanly: every call that it let out has its effect.

        A crash before `door.json` is there makes it a dead door, which has nothing open.
        """
        said = {"boot": f"{self.boot:016x}", "last_seq": self.last_seq, "last_ref": self.last_ref, "closed": True}
        self._shut()
        write_atomic(self.folder / "door.json", json.dumps(said).encode())
        self._lock.release()

    def abandon(self) -> None:
        """End as a crash would: the host records what is open as lost."""
        self._shut()
        self._lock.release()

    def _shut(self) -> None:
        self._stop.set()
        self._thread.join()
        self._writer.close()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(doors: Path) -> None:
    """Remove what doors left that died before they had a name. Nothing was recorded there."""
    for folder in doors.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < STALE_S:
                continue
            handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(handle)
