"""Messages that are refused: whoever can write to a topic must not fill the log."""

import logging
import time
from typing import Final

from schemas.errors import FrameFault

QUIET_S: Final = 5.0
"""How long nothing more is said of messages that are refused for the same reason."""


class Refusals:
    """Those of one topic; `log` is whose line it is."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._said: dict[str, float] = {}

    def say(self, fault: FrameFault) -> None:
        """Say that `what` is refused, and why, unless that was said a moment ago."""
        now = time.monotonic()
        if now - self._said.get(fault.reason, -QUIET_S) >= QUIET_S:
            self._said[fault.reason] = now
            self._log.warning("%s is refused: %s", self._what, fault)
