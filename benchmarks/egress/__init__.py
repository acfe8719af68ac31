"""What does the egress door cost, and how soon does it obey? `python -m benchmarks egress [--rounds=N] [--only=PART,...]`.

`site` runs Wardline whole, `arms` puts it and each peer between the same two ends; `speed` compares plain requests, tunnels
and long answers, in turns on one processor, with policy and record on in every arm; `nulldoor` is the door whose records go
nowhere, which only this harness has: what it saves is the record's share. `obeyed` revokes agents under load and looks from the
side of a `client`; `crowd` holds ten thousand tunnels, and lets a thousand agents call a hundred thousand hosts, which `dns`
names.
"""

import importlib
from typing import Final

PARTS: Final = ("speed", "obeyed", "crowd")


def main(argv: list[str]) -> int:
    """Measure each part and print; returns 1 when a limit is missed."""
    options = dict(word.lstrip("-").partition("=")[::2] for word in argv)
    only = options["only"].split(",") if options.get("only") else list(PARTS)
    if wrong := [part for part in only if part not in PARTS]:
        print(f"egress: `{wrong[0]}` is none of {', '.join(PARTS)}")
        return 1
    good = [importlib.import_module(f"benchmarks.egress.{part}").measure(options) for part in only]
    return 0 if all(good) else 1
