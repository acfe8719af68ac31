"""The doors of one host, as its host sees them: their spools, whether they live, and what becomes of a dead one's calls."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from enforcers.core.box import DoorState
from ext.spool import Run, SpoolReader, SpoolWriter
from schemas.config import Enforcer
from schemas.errors import SpoolFull
from schemas.layout import VERDICT_UNSAID
from schemas.process import write_atomic
from schemas.records import STRING_FIELDS, Kind, Outcome

log = logging.getLogger(__name__)

KEEP_S: Final = 30 * 86_400
"""A finished door's `door.json` stays this long: a replay that is resumed asks it how far it got."""

_LOST_TEXTS: Final = tuple({"tenant": "default", "error": "door died"}.get(name, "") for name in STRING_FIELDS)


class DoorSpool:
    """One door's spool folder."""

    def __init__(self, folder: Path, boot: int, sealed: int) -> None:
        self.folder = folder
        self.boot = boot
        self.closed = self._said()
        self.reader = SpoolReader(str(folder), boot, sealed)
        self.exhausted = False
        """Whether the door had ended before the last read, and that read found nothing: there is no more to come."""
        self._lock: int | None = None
        self._swept = 0

    def _said(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / "door.json").read_bytes()))
        except (OSError, ValueError):
            return None

    @property
    def ended(self) -> bool:
        """Whether the door is known to write nothing more."""
        return self.closed is not None or self._lock is not None

    def read(self, records_max: int, bytes_max: int) -> list[Run]:
        """New records, whole runs."""
        ended = self.ended
        runs = self.reader.read(records_max, bytes_max)
        self.exhausted = ended and not runs
        return runs

    def look(self) -> bool:
        """Whether the door has ended: by its own word, or because nobody holds its lock (then we do, from now on)."""
        if self.closed is None:
            self.closed = self._said()
        if self.ended:
            return True
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._lock = handle
        self.closed = self._said()  # it may have closed between our two looks
        return True

    def bury(self, state: DoorState, limits: Enforcer) -> None:
        """Write `lost` for each call that a dead door left open, then close its spool in its place.

        Everything it wrote must be sealed. A crash in here is repaired by the next start: what was written is read and
        closes its call, the rest is written then. Raises SpoolFull or OSError when there is no room; then try again later.
        """
        if state.open:
            writer = SpoolWriter(
                str(self.folder), self.boot, limits.segment_bytes, limits.spool_bytes + limits.segment_bytes,
                limits.spool_reserved_bytes, state.last,
            )  # fmt: skip
            try:
                for seq, trace in sorted(state.open.items()):
                    now = time.time_ns()
                    writer.append(
                        int(Kind.LOST), seq, now, now, VERDICT_UNSAID, int(Outcome.LOST), 0, 0, 0, 0, 0, 0, 0, 0, 0,
                        0, 0, 0, trace, bytes(8), _LOST_TEXTS, True,
                    )  # fmt: skip
            finally:
                writer.close()
            log.warning("door %016x died with %d calls open: they are recorded as lost", self.boot, len(state.open))
            self.exhausted = False
            return  # the records are read and sealed first, then this is called again with no open call
        boot, seq, ref = f"{self.boot:016x}", state.last, state.last_ref
        said: dict[str, Any] = {"boot": boot, "last_seq": seq, "last_ref": ref, "closed": True, "adopted": True}
        if self.reader.torn:
            said["torn"] = self.reader.torn
            log.error("door %016x: %s; what followed it is lost", self.boot, self.reader.torn)
        write_atomic(self.folder / "door.json", json.dumps(said).encode())
        self.closed = said

    def sweep(self) -> None:
        """Remove segments that are sealed, all but the one that is read."""
        if self.reader.segment == self._swept:
            return
        for file in self.folder.glob("*.seg"):
            if file.stem.isdigit() and int(file.stem) < self.reader.segment:
                file.unlink(missing_ok=True)
        self._swept = self.reader.segment

    def retire(self) -> None:
        """Everything is stored: only `door.json` stays, and says so."""
        assert self.closed is not None
        for file in self.folder.glob("*.seg"):
            file.unlink(missing_ok=True)
        said = {**self.closed, "stored": True}
        write_atomic(self.folder / "door.json", json.dumps(said).encode())  # a full disk: the next look tries again
        self.closed = said
        self.reader.close()
        self.release()

    def release(self) -> None:
        """Let go of a dead door's lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def find_doors(folder: Path, known: Callable[[int], int], have: set[int]) -> list[DoorSpool]:
    """New door folders under `folder`; `known(boot)` says how far a door is sealed already.

    A folder whose `door.json` says `stored` is finished; it is removed after KEEP_S.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if len(entry.name) != 16 or int(entry.name, 16) in have:
                continue
            boot = int(entry.name, 16)
            spool = DoorSpool(Path(entry.path), boot, known(boot))
            if spool.closed is not None and spool.closed.get("stored"):
                spool.reader.close()
                if time.time() - (spool.folder / "door.json").stat().st_mtime > KEEP_S:
                    shutil.rmtree(spool.folder, ignore_errors=True)
                have.add(boot)
                continue
            found.append(spool)
    return found


__all__ = ["DoorSpool", "SpoolFull", "find_doors"]
