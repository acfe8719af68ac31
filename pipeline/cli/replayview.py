"""What a replay shows: a bar on a terminal, a line now and then elsewhere, and the closing summary."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_FIRST_S: Final = 1.0
LINE_S: Final = 5.0
SAME_LINE_S: Final = 60.0
"""How often a line comes again that says nothing new."""


REFUSALS: Final = {
    "refused by policy": ("forbid", "no-permit"),
    "refused as revoked": ("revoked",),
    "refused while paused": ("paused",),
    "refused for their chain": ("chain", "identity"),
}
"""How the summary calls the reasons of a refusal; any other reason is called by itself."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """The figures of one run, counted as it goes."""

    lines: int
    """Lines of the file."""
    doors: int = 1
    before: int = 0
    """Lines that earlier runs had done."""
    allowed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of the refused."""
    calling_s: float = 0.0
    """From the first call until the last was recorded, waits included."""
    stored_s: float = 0.0
    """From then until everything was stored."""
    records: int = 0
    """Records in the spools."""
    stored: int = 0
    """Of them in the store."""

    @property
    def refused(self) -> int:
        """Calls that were refused, for whatever reason."""
        return self.reasons.total()

    @property
    def calls(self) -> int:
        """Calls of this run."""
        return self.allowed + self.refused

    @property
    def done(self) -> int:
        """Lines that are done."""
        return self.before + self.calls

    def add_up(self, doors: Iterable[Mapping[str, Any]]) -> None:
        """Take the figures of all doors, as each last said them."""
        said = [door for door in doors if door]
        self.allowed = sum(int(door["allowed"]) for door in said)
        self.records = sum(int(door["records"]) for door in said)
        self.reasons = sum((Counter(door["reasons"]) for door in said), Counter[str]())
        ended = [float(door["ended"]) for door in said if door["ended"]]
        if ended:
            self.calling_s = max(ended) - min(float(door["begun"]) for door in said if door["ended"])

    def summary(self) -> list[str]:
        """The closing lines."""
        pairs = [("doors", f"{self.doors:,}")] if self.doors > 1 else []
        pairs += [("calls", f"{self.calls:,}"), ("allowed", f"{self.allowed:,}")]
        names = {reason: name for name, reasons in REFUSALS.items() for reason in reasons}
        refused = Counter({"refused by policy": 0})
        for reason, count in self.reasons.items():
            refused[names.get(reason, f"refused as {reason}")] += count
        known = [*REFUSALS, *sorted(refused.keys() - REFUSALS.keys())]
        pairs += [(name, f"{refused[name]:,}") for name in known if name in refused]
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
