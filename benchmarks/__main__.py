"""`python -m benchmarks [NAME...] [OPTIONS]`: run the named benchmarks, or all, in turn; exit 1 when any limit is missed.

Options begin with a dash and go to every benchmark that runs. Figures mean little without the machine, so it is named first.
"""

import importlib
import os
import platform
import sys
import time
from typing import Final

NAMES: Final = ("spool", "decide", "board", "control", "pipeline", "egress", "loss", "stitching", "respond", "detection")


def main(argv: list[str]) -> int:
    """Run them; returns the exit code: 0, 1 when a limit was missed, 2 when a name is unknown."""
    names = [word for word in argv if not word.startswith("-")]
    options = [word for word in argv if word.startswith("-")]
    if unknown := [name for name in names if name not in NAMES]:
        print(f"benchmarks: `{unknown[0]}` is none of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    print(machine())
    missed = []
    for name in names or NAMES:
        print(f"-- {name}", flush=True)
        begun = time.monotonic()
        if importlib.import_module(f"benchmarks.{name}").main(options):
            missed.append(name)
        print(f"-- {name}: {'a limit is missed' if name in missed else 'every limit holds'}, {time.monotonic() - begun:.0f} s")
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


def machine() -> str:
    """The machine in one line: processors, Python, and how busy it is already."""
    model = "unknown processor"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    usable = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    system = f"{platform.system()} {platform.release()}"
    return f"machine: {usable} x {model}, {system}, python {platform.python_version()}, load {load:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
