"""A recorded-calls file: read once to check every line and know its digest, then once more to call.

The whole file is checked first, so that a file with a bad line is refused whole. Were the lines before the bad one called,
whoever puts it right would have another file, with another digest, that no `--resume` could continue.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from schemas.calls import RecordedCall, parse_call
from schemas.errors import OperatorFault
from schemas.limits import LINE_BYTES_MAX

LOOK_LINES: Final = 1000
"""Lines between two looks whether the file is still the one that was checked."""


class CallFile:
    """One file, open from the check to the last call: a file that is moved over it in between changes nothing.

    Raises OperatorFault when it cannot be read or is no regular file: a pipe cannot be read twice.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines = 0
        self.digest = b""
        try:
            # not blocking, so that a pipe is refused and not waited for
            self._file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=1 << 20)  # noqa: SIM115
        except OSError as fault:
            raise OperatorFault(f"{path}: cannot be read: {(fault.strerror or str(fault)).lower()}") from fault
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise OperatorFault(f"{path}: is no regular file; write the calls to one, so that a run can be resumed")
        self._look = self._now()

    def __enter__(self) -> "CallFile":
        return self

    def __exit__(self, *_: object) -> None:
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

    def calls(self, after: int = 0) -> Iterator[RecordedCall]:
        """The calls of the lines behind line `after`, in order.

        Raises OperatorFault when the file is no longer the one that was checked.
        """
        digest = hashlib.sha256()
        for number, line in self._read():
            digest.update(line)
            if number > after:
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
