"""The outbox on disk: `NNNNNNNNNNNN.box` files and `checkpoint.json` (their bytes are defined in `enforcers.core.box`)."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Final

from enforcers.core.box import BoxHead, DoorState, head_bytes, parse_box, parse_checkpoint
from enforcers.core.lanes import FrameRef
from schemas.errors import OperatorFault, PeerFault
from schemas.process import private_dir, sync_folder, write_atomic

CACHE_BYTES: Final = 16 << 20
"""Boxes that were just written are sent from memory; older ones are read again."""


class OutboxFull(PeerFault):
    """No room for a cut: nothing more is sealed until frames are stored, so spools fill and calls wait."""


class Outbox:
    """The boxes of one host."""

    def __init__(self, folder: Path, *, bytes_max: int, sync: bool) -> None:
        self.folder = private_dir(folder)
        self.bytes = 0
        self._bytes_max = bytes_max
        self._sync = sync
        self._sizes: dict[int, int] = {}
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached = 0

    def _path(self, cut_no: int) -> Path:
        return self.folder / f"{cut_no:012d}.box"

    def load(self) -> tuple[int, dict[int, DoorState], list[BoxHead]]:
        """Checkpoint and the boxes behind it. Raises OperatorFault naming the file that is damaged or missing."""
        self._settle()
        path = self.folder / "checkpoint.json"
        cut_no, doors = parse_checkpoint(path.read_bytes(), str(path)) if path.exists() else (0, {})
        heads = []
        for file in sorted(self.folder.iterdir()):
            if file.suffix != ".box":
                if file.name.startswith("."):
                    file.unlink()  # a crash came before the rename: the cut never happened
                continue
            number = int(file.stem)
            if number <= cut_no:
                file.unlink()  # a crash came between checkpoint and removal: everything in it is stored
                continue
            heads.append(self._head(file))
            expected = cut_no + len(heads)
            if number != expected or heads[-1].cut_no != number:
                raise OperatorFault(f"{self._path(expected)}: is missing, and {file.name} follows; restore it to go on")
        return cut_no, doors, heads

    def _settle(self) -> None:
        """A crash may have come between a rename and its sync: make the names last before anything found here is sent.

        Else a loss of power could take back a box whose frames are stored, and its records would be sealed a second time.
        """
        if not self._sync:
            return
        try:
            sync_folder(self.folder)
        except OSError as fault:
            raise OperatorFault(f"{self.folder}: cannot be synced: {fault.strerror}") from fault

    def _head(self, file: Path) -> BoxHead:
        size = file.stat().st_size
        with file.open("rb") as opened:
            data = opened.read(64)
            data += opened.read(max(0, head_bytes(data) - len(data)))
        head = parse_box(data, str(file))
        end = head.frames[-1].offset + head.frames[-1].size if head.frames else 0
        if size < end:
            raise OperatorFault(f"{file}: has {size} bytes, its head says {end}; restore it to go on")
        self._sizes[head.cut_no] = size
        self.bytes += size
        return head

    def has_room(self) -> bool:
        """Whether another cut may be written at all."""
        return self.bytes < self._bytes_max

    def write(self, cut_no: int, data: bytes) -> None:
        """Commit a cut. Raises OutboxFull when the limit is reached or the disk has no room; then nothing has changed."""
        if not self.has_room():
            raise OutboxFull(f"{self.folder}: the outbox holds {self.bytes} bytes, limit is {self._bytes_max}")
        try:
            # a crash before the rename inside: the cut never happened, its records are sealed again under the same numbers
            # a crash behind it: the cut is whole, and the next start takes it up
            write_atomic(self._path(cut_no), data, sync=self._sync)
        except OSError as fault:
            raise OutboxFull(f"{self._path(cut_no)}: cannot be written: {fault.strerror}") from fault
        self._sizes[cut_no] = len(data)
        self.bytes += len(data)
        self._cache[cut_no] = data
        self._cached += len(data)
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= len(self._cache.popitem(last=False)[1])

    def frame(self, ref: FrameRef) -> bytes:
        """The bytes of a frame, as they were first sent."""
        data = self._cache.get(ref.cut_no)
        if data is not None:
            return data[ref.offset : ref.offset + ref.size]
        handle = os.open(self._path(ref.cut_no), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(handle, ref.size, ref.offset)
        finally:
            os.close(handle)

    def trim(self, cut_no: int, checkpoint: bytes) -> None:
        """Forget the boxes up to `cut_no`, which are stored: first the checkpoint says so, then they go.

        Raises OSError when the disk has no room for the checkpoint; then nothing has changed, and the next call tries again.
        """
        write_atomic(self.folder / "checkpoint.json", checkpoint, sync=self._sync)
        for number in [n for n in self._sizes if n <= cut_no]:
            self.bytes -= self._sizes.pop(number)
            self._cached -= len(self._cache.pop(number, b""))
            self._path(number).unlink(missing_ok=True)
