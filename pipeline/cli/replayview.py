"""What a replay shows: a bar on a terminal, a line now and then elsewhere, and the closing summary."""

import sys
import time
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_FIRST_S: Final = 1.0
LINE_S: Final = 5.0
SAME_LINE_S: Final = 60.0
"""How often a line comes again that says nothing new."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """The figures of one run, counted as it goes."""

    lines: int
    """Lines of the file."""
    before: int = 0
    """Lines that earlier runs had done."""
    allowed: int = 0
    refused: int = 0
    chain_refused: int = 0
    """Of the refused: those whose chain was too deep, or had nobody who acts."""
    calling_s: float = 0.0
    """From the first call until the last was recorded."""
    stored_s: float = 0.0
    """From then until everything was stored."""
    records: int = 0
    """Records in the spool."""
    stored: int = 0
    """Of them in the store."""

    @property
    def calls(self) -> int:
        """Calls of this run."""
        return self.allowed + self.refused

    @property
    def done(self) -> int:
        """Lines that are done."""
        return self.before + self.calls

    def summary(self) -> list[str]:
        """The closing lines."""
        pairs = [("calls", f"{self.calls:,}"), ("allowed", f"{self.allowed:,}"), ("refused by policy", f"{self.refused:,}")]
        if self.chain_refused:
            pairs[2] = ("refused by policy", f"{self.refused - self.chain_refused:,}")
            pairs.append(("refused for their chain", f"{self.chain_refused:,}"))
        if self.before:
            pairs.append(("done before", f"{self.before:,}"))
        if self.calls:
            pairs.append(("rate", f"{self.calls / max(self.calling_s, 1e-6):,.0f} calls/s"))
        pairs.append(("all stored after", f"{self.stored_s:.2f} s"))
        return [f"{name:<24}{value:>16}" for name, value in pairs]


class View:
    """Shows `Counts` on stderr while a run goes on."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._status = self._line = ""
        self._begun = self._printed = 0.0
        self._bars = (
            Progress(
                TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[status]}", markup=False), console=Console(stderr=True),
            )
            if sys.stderr.isatty()
            else None
        )  # fmt: skip

    def __enter__(self) -> "View":
        self._begun = time.monotonic()
        if self._bars is not None:
            self._bars.start()
            self._calling = self._bars.add_task("called", total=self._counts.lines, status="")
            self._storing = self._bars.add_task("stored", total=None, status="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self.update()
            self._bars.stop()

    def status(self, text: str) -> None:
        """What is waited for now; empty when nothing is."""
        self._status = text

    def tell(self, text: str) -> None:
        """One line that stays."""
        if self._bars is not None:
            self._bars.console.print(f"wardline: {text}", markup=False, highlight=False)
        else:
            print(f"wardline: {text}", file=sys.stderr, flush=True)

    def update(self) -> None:
        """Show the figures as they are now."""
        counts = self._counts
        if self._bars is not None:
            self._bars.update(self._calling, completed=counts.done, status=self._status)
            self._bars.update(self._storing, completed=counts.stored, total=counts.records or None)
            return
        now = time.monotonic()
        waits = f"; {self._status}" if self._status else ""
        stored = f"{counts.stored:,} of {counts.records:,} records stored"
        line = f"{counts.done:,} of {counts.lines:,} lines called, {stored}{waits}"
        if now - self._begun < LINE_FIRST_S or now - self._printed < (LINE_S if line != self._line else SAME_LINE_S):
            return
        self._printed, self._line = now, line
        self.tell(line)
