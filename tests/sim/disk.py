"""The disk under the shipped code: real files in memory, with every system call that changes a folder as a crash point.

The shipped spool, outbox and doors call `os.open`, `os.fsync`, `os.replace` and so on as always; while a `Disk` is in force
these pass here. A process can die before each of them (`arm`), the disk can be full or fail in three ways (`ails`), and after a
`power_loss` what was not synced is undone, newest first, as far back as the seed says: a rename or removal counts as synced
when its folder was, and the bytes of a file when the file was. Spool segments are memory-mapped and never synced, so
a loss of power is outside what they promise; here they outlive it, and the order of the outbox's own steps is what is tried.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.sim.story import Died, Story

AILMENTS = ("no space", "sync fails", "folder sync fails")


@dataclass(slots=True, eq=False)
class _Change:
    """One rename or removal that a loss of power may undo."""

    folder: int
    path: str
    before: str | None
    """A second link to what stood there; None when nothing did."""
    inode: int
    whole: bool
    """Whether the bytes that were moved in are on the disk."""
    durable: bool = False
    """Whether its folder was synced: it cannot be undone any more, but its bytes may still be missing."""


class Disk:
    """Puts itself between the shipped code and `os` for paths under `root`."""

    def __init__(self, root: Path, story: Story) -> None:
        self.root = str(root)
        self.ails = ""
        self.operations = 0
        self._story = story
        self._aside = root / "aside"
        self._aside.mkdir()
        self._kept = 0
        self._dies_at: int | None = None
        self._synced: set[int] = set()
        self._volatile: list[_Change] = []
        self._real: dict[str, Any] = {}

    def __enter__(self) -> "Disk":
        for name in ("open", "fsync", "replace", "unlink", "rename", "posix_fallocate"):
            self._real[name] = getattr(os, name)
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)

    def arm(self, operations: int | None) -> None:
        """Let whoever runs next die before its disk operation number `operations` (0: the next one); None: let it live."""
        self._dies_at = None if operations is None else self.operations + operations

    def step(self, what: str) -> None:
        """An operation is about to happen: whoever does it dies here when its turn has come."""
        if self._dies_at is not None and self.operations >= self._dies_at:
            self._dies_at = None
            self._story.fault(f"died before {what}")
            raise Died
        self.operations += 1

    def _ours(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.root)

    def _open(self, path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_TRUNC and self._ours(path):
            self.step("open")
            if self.ails == "no space":
                self._story.fault("no space")
                raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))
        handle: int = self._real["open"](path, flags, *args, **options)
        return handle

    def _posix_fallocate(self, handle: int, offset: int, size: int) -> None:
        self.step("allocation")
        if self.ails == "no space":
            self._story.fault("no space for a segment")
            raise OSError(errno.ENOSPC, "No space left on device")
        self._real["posix_fallocate"](handle, offset, size)

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        self.step("rename of a segment")
        self._real["rename"](source, target, **options)

    def _fsync(self, handle: int) -> None:
        found = os.fstat(handle)
        folder = stat.S_ISDIR(found.st_mode)
        self.step("folder sync" if folder else "sync")
        if self.ails == ("folder sync fails" if folder else "sync fails"):
            self._story.fault(self.ails)
            raise OSError(errno.EIO, "Input/output error")
        if folder:
            for change in self._volatile:
                change.durable = change.durable or change.folder == found.st_ino
        else:
            self._synced.add(found.st_ino)
            for change in self._volatile:
                change.whole = change.whole or change.inode == found.st_ino
        self._volatile = [change for change in self._volatile if not (change.durable and change.whole)]

    def _replace(self, source: Any, target: Any, **options: Any) -> None:
        if not self._ours(target):
            self._real["replace"](source, target, **options)
            return
        self.step("rename")
        inode = os.stat(source).st_ino
        before = self._keep(os.fspath(target)) if os.path.exists(target) else None
        self._real["replace"](source, target, **options)
        self._remember(os.fspath(target), before, inode, inode in self._synced)
        self._synced.discard(inode)

    def _unlink(self, path: Any, **options: Any) -> None:
        if not self._ours(path) or not os.path.exists(path):
            self._real["unlink"](path, **options)
            return
        self.step("removal")
        before = self._keep(os.fspath(path))
        inode = os.stat(path).st_ino
        self._synced.discard(inode)
        self._real["unlink"](path, **options)
        self._remember(os.fspath(path), before, inode, True)

    def _keep(self, path: str) -> str:
        self._kept += 1
        kept = str(self._aside / str(self._kept))
        os.link(path, kept)
        return kept

    def _remember(self, path: str, before: str | None, inode: int, whole: bool) -> None:
        folder = os.stat(os.path.dirname(path)).st_ino
        self._volatile.append(_Change(folder=folder, path=path, before=before, inode=inode, whole=whole))

    def power_loss(self) -> None:
        """Undo the newest of the changes that were not synced, as many as the seed says."""
        loose = [change for change in self._volatile if not change.durable]
        undone = self._story.random.randint(0, len(loose))
        gone = loose[len(loose) - undone :]
        for change in reversed(gone):
            if os.path.exists(change.path):
                self._real["unlink"](change.path)
            if change.before is not None:
                os.link(change.before, change.path)
        for change in self._volatile:
            if change not in gone and not change.whole and os.path.exists(change.path):
                os.truncate(change.path, os.path.getsize(change.path) // 2)
        self._volatile.clear()
        self.operations += 1
        self._story.fault("power loss", f"{undone} changes undone")
        if undone:
            self._story.seen["power loss undoes a change"] += 1
