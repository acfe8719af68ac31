"""How well is it noticed? `python -m benchmarks.detection [NAME...]`: every detector on data that nobody here wrote, then all.

Each `benchmarks.detect_NAME` says what it asks of which data and returns figures; NAME runs one alone. Everything runs the
shipped defaults: no option is set for a data set. Intervals are 95 % of 1,000 bootstraps by agent, run, key or series, whole.
Plots are written under `.cache/plots`.
"""

import importlib
import pkgutil
import sys
import time
from typing import Final

import benchmarks
from benchmarks.detectdata import data
from benchmarks.figures import Figure, show
from benchmarks.plots import Bar, bars

PREFIX: Final = "detect_"
FALSE: Final = "false findings in 1,000 agent-days"


def main(argv: list[str]) -> int:
    """Print every table; returns 1 when a limit is missed, 2 without data or for an unknown name."""
    known = names()
    wanted = [word for word in argv if not word.startswith("-")] or known
    if unknown := [name for name in wanted if name not in known]:
        print(f"detection: `{unknown[0]}` is none of {', '.join(known)}", file=sys.stderr)
        return 2
    if data() is None:
        print("detection: the shared data folder is not here", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    missed = 0
    for name in wanted:
        begun = time.monotonic()
        found = importlib.import_module(f"benchmarks.{PREFIX}{name}").measure([])
        print(f"-- {name}, {time.monotonic() - begun:.0f} s", flush=True)
        missed |= show(found)
        figures += found
    draw(figures)
    return missed


def names() -> list[str]:
    """Every module that measures a detector; what all of them together say comes last."""
    found = [module.name.removeprefix(PREFIX) for module in pkgutil.iter_modules(benchmarks.__path__)
             if module.name.startswith(PREFIX)]  # fmt: skip
    return sorted(found, key=lambda name: (name == "fused", name))


def draw(figures: list[Figure]) -> None:
    """Two plots: shares with their intervals, and false findings per agent-day."""
    shares = [one for one in figures if one.low is not None and one.high is not None and one.high <= 1.0]
    rates = [one for one in figures if one.low is not None and FALSE in one.what]
    for name, title, some in (("shares", "Shares, with 95 % intervals", shares), ("false", FALSE.capitalize(), rates)):
        if some:
            values = [Bar(f"{f.detector}: {f.what[:34]}, {f.data[:16]}", f.value, f.low or 0.0, f.high or 0.0) for f in some]
            print(f"plot: {bars(f'detection-{name}', title, values)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
