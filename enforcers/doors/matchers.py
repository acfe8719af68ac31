"""The policies that a door decides by: those that its board names, as soon as they are ready.

    the board names others -> a thread reads and indexes them; the old ones decide meanwhile -> the deciding thread takes them

Only the deciding thread changes `current`, so what it acknowledges is what it decides by.
"""

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Final

from ext.decide import Matcher
from schemas.bundle import Bundle
from schemas.errors import OperatorFault

log = logging.getLogger(__name__)

AGAIN_S: Final = 1.0
"""How long policies that could not be read are left alone."""

SWITCH_S: Final = 0.001
"""How soon a thread that builds gives way to the one that decides: with Python's own 5 ms a call would wait as long."""

LET_GO_S: Final = 0.05
"""How long the policies from before stay when others have taken their place: until no call is being decided by them."""


class Matchers:
    """`current` permits nothing until a first `follow` has found policies; nothing should be decided before."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the host's verified bundles, `DIGEST.json`."""
        self._folder = folder
        self.current = Matcher(Bundle().encode())
        self.policy: bytes | None = None
        """What the board calls them; empty where it names none, None before the first are there."""
        self.fault = ""
        """Why others that the board names are not decided by; empty when nothing is wrong."""
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._made: tuple[bytes, Matcher | OperatorFault] | None = None
        self._failed = b""
        self._again = 0.0

    def follow(self, wanted: bytes, *, wait: bool = False) -> bool:
        """Decide by the policies with this digest, when they are ready; whether they now are. With `wait`, build them here.

        Empty: there are none, so nothing is permitted.
        """
        if wanted == self.policy:
            return True
        if not wanted:
            self._take(wanted, Matcher(Bundle().encode()))
            return True
        if self._thread is not None and self._made is None and not wait:
            return False  # asked with each decision: it must cost nothing until they are ready
        if wanted == self._failed and time.monotonic() < self._again:
            return False
        if wait:
            self._made = (wanted, self._build(wanted))
        with self._guard:
            made = self._made
            if made is not None:
                self._made = self._thread = None
        if made is not None and made[0] == wanted:
            if isinstance(made[1], Matcher):
                self._take(wanted, made[1])
                return True
            self._failed, self._again = wanted, time.monotonic() + AGAIN_S
            if self.fault != str(made[1]):
                log.error("%s; the policies from before stay", made[1])
            self.fault = str(made[1])
        elif self._thread is None:
            self._thread = threading.Thread(target=self._build_beside, args=(wanted,), name="policies", daemon=True)
            self._thread.start()
        return False

    def _take(self, wanted: bytes, matcher: Matcher) -> None:
        self.current, self.policy, self.fault = matcher, wanted, ""

    def _build_beside(self, wanted: bytes) -> None:
        old = self.current
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, SWITCH_S))
        try:
            made = self._build(wanted)
        finally:
            sys.setswitchinterval(before)
        with self._guard:
            self._made = mine = (wanted, made)
        # The old ones are let go here, when nobody decides by them any more: they are thousands of pieces, and whoever lets go
        # of the last hold on them waits until all are freed.
        while self._made is mine:
            time.sleep(LET_GO_S)
        time.sleep(LET_GO_S)
        del old, made, mine

    def _build(self, wanted: bytes) -> Matcher | OperatorFault:
        path = self._folder / f"{wanted.hex()}.json"
        try:
            matcher = Matcher(path.read_bytes())
        except OSError as fault:
            return OperatorFault(f"{path}: cannot be read: {(fault.strerror or str(fault)).lower()}")
        except Exception as fault:  # whatever it is: a thread that ends without a word would never be replaced
            return OperatorFault(f"{path}: {fault if isinstance(fault, OperatorFault) else repr(fault)}")
        if matcher.digest != wanted.hex():
            return OperatorFault(f"{path}: holds policies of digest {matcher.digest}")
        return matcher
