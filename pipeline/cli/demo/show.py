"""What the demo prints: one line for each thing that happens, headings, and what a command of ours says; plain on a pipe."""

import os
import sys
import threading
import time
from typing import Final, TextIO

from pipeline.cli.common import printable

WHERE_CHARS: Final = 56
LINES_MAX: Final = 60
TAIL_LINES: Final = 12

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"


class Show:
    """The demo's output. Several threads may print: each line is whole."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._colours = self._out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._begun = time.monotonic()
        self._guard = threading.Lock()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    def line(self, text: str = "") -> None:
        """As it is."""
        with self._guard:
            self._out.write(f"{text}\n")
            self._out.flush()

    def heading(self, text: str) -> None:
        """Where something new begins."""
        self.line(f"\n{self.in_(BOLD, text)}")

    def step(self, who: str, what: str, result: str = "", colour: str = "") -> None:
        """Something that somebody does, and what comes of it."""
        cut = printable(what)
        if len(cut) > WHERE_CHARS:
            cut = f"{cut[: WHERE_CHARS // 2 - 1]}...{cut[-(WHERE_CHARS // 2 - 2) :]}"
        shown = self.in_(colour, result) if colour else result
        self.line(f"{self.in_(DIM, f'{self.seconds:6.1f} s')}  {who:12}  {cut:{WHERE_CHARS}}  {shown}".rstrip())

    def command(self, words: str, said: str) -> None:
        """A command of ours, and what it said; of much its beginning and its end."""
        lines = said.rstrip().splitlines()
        if len(lines) > LINES_MAX:
            left_out = len(lines) - LINES_MAX
            lines[LINES_MAX - TAIL_LINES : -TAIL_LINES] = [self.in_(DIM, f"... {left_out} lines more ...")]
        self.line("\n".join([f"\n{self.in_(DIM, '$')} {self.in_(BOLD, words)}", *lines]))

    def in_(self, style: str, text: str) -> str:
        """Coloured, on a terminal."""
        return f"\x1b[{style}m{text}\x1b[0m" if self._colours else text
