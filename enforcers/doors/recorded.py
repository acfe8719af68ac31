"""A recorded-calls file: read once to check every line and know its digest, then once more to call.

The whole file is checked first, so that a file with a bad line is refused whole. Were the lines before the bad one called,
whoever puts it right would have another file, with another digest, that no `--resume` could continue.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.calls import RecordedCall, parse_call
from schemas.errors import OperatorFault
from schemas.limits import LINE_BYTES_MAX

LOOK_LINES: Final = 1000
"""Lines between two looks whether the file is still the one that was checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is known of a file that was checked, for another process that calls some of its lines."""

    path: str
    """What its user calls it."""
    handle: int
    """The file as it was checked, open, in the process that is told this."""
    digest: str
    lines: int
    size: int
    changed_ns: int


class CallFile:
    """One file, open from the check to the last call: a file that is moved over it in between changes nothing.

    Raises OperatorFault when it cannot be read or is no regular file: a pipe cannot be read twice.
    """

    def __init__(self, path: str, opened: str = "") -> None:
        """`opened`: what to open, where that is not `path`."""
        self.path = path
        self.lines = 0
        self.digest = b""
        try:
            # not blocking, so that a pipe is refused and not waited for
            handle = os.open(opened or path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._file = open(handle, "rb", buffering=1 << 20)  # noqa: SIM115
        except OSError as fault:
            raise OperatorFault(f"{path}: cannot be read: {(fault.strerror or str(fault)).lower()}") from fault
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise OperatorFault(f"{path}: is no regular file; write the calls to one, so that a run can be resumed")
        self._look = self._now()

    @classmethod
    def again(cls, known: Checked) -> "CallFile":
        """The same file in another process, which reads at a place of its own. Takes the handle."""
        file = cls(known.path, f"/proc/self/fd/{known.handle}")
        os.close(known.handle)
        file.digest, file.lines = bytes.fromhex(known.digest), known.lines
        file._look = known.size, known.changed_ns
        return file

    def checked(self) -> Checked:
        """What `again` needs, after `check`. The handle stays ours."""
        size, changed_ns = self._look
        return Checked(
            path=self.path, handle=self._file.fileno(), digest=self.digest.hex(), lines=self.lines, size=size,
            changed_ns=changed_ns,
        )  # fmt: skip

    def __enter__(self) -> "CallFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    @property
    def name(self) -> str:
        """Its absolute path."""
        return str(Path(self.path).absolute())

    def check(self) -> None:
        """Read every line; then `digest` (SHA-256) and `lines` are known.

        Raises OperatorFault at the first line that is not as `schemas.calls` says, or when the file changes meanwhile.
        """
        digest = hashlib.sha256()
        for number, line in self._read():
            digest.update(line)
            parse_call(line, number, file=self.path, digest=b"")
            self.lines = number
        self.digest = digest.digest()

    def calls(self, after: int = 0, part: int = 1, parts: int = 1) -> Iterator[RecordedCall]:
        """The calls of the lines behind line `after`, in order; only those of one part (see `progress`).

        Raises OperatorFault when the file is no longer the one that was checked.
        """
        digest = hashlib.sha256()
        for number, line in self._read():
            digest.update(line)
            if number > after and (number - part) % parts == 0:
                yield parse_call(line, number, file=self.path, digest=self.digest)
        if digest.digest() != self.digest:
            raise self._changed()

    def _read(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        number = 0
        # a line that is longer than the limit comes in pieces, and the first of them is refused
        while line := self._file.readline(LINE_BYTES_MAX + 2):
            number += 1
            if number % LOOK_LINES == 0 and self._now() != self._look:
                raise self._changed()
            yield number, line
        if self._now() != self._look:
            raise self._changed()

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def _changed(self) -> OperatorFault:
        was, now = self._look[0], self._now()[0]
        return OperatorFault(f"{self.path}: was changed while it was read ({was} bytes then, {now} now); replay a copy of it")
