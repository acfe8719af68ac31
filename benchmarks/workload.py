"""Calls for the pipeline's benchmark: recorded calls again and again, as if other agents' runs made them.

Each round of the file has sessions, traces and spans of its own, so that what is compressed is what a fleet would send, not
one thousand lines over and over. The records go through the replay's own door and core.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn

from enforcers.doors.recorded import CallFile
from enforcers.doors.replay import ReplayDoor
from enforcers.doors.spooler import Spooler
from ext.decide import Matcher
from pipeline.policy.load import load_bundle
from schemas.calls import RecordedCall
from schemas.config import Enforcer
from schemas.records import make_boot

EXAMPLES: Final = Path(__file__).resolve().parents[1] / "pipeline" / "cli" / "examples"
SAMPLE: Final = EXAMPLES / "calls.jsonl"


def endless(file: Path) -> Iterator[RecordedCall]:
    """The calls of a file, round after round, made now."""
    with CallFile(str(file)) as calls:
        calls.check()
        lines = list(calls.calls())
    number = turn = 0
    while True:
        turn += 1
        for line in lines:
            number += 1
            trace = hashlib.sha256(f"{turn}/".encode() + line.trace_id).digest()
            span = hashlib.sha256(f"{turn}/".encode() + line.parent_span).digest()
            yield replace(
                line, ref=number, time_ns=time.time_ns(), session=f"{line.session}#{turn}", trace_id=trace[:16],
                parent_span=span[:8],
            )  # fmt: skip


def fill_spool(host_folder: Path, file: Path, count: int, limits: Enforcer) -> int:
    """Decide and record `count` calls in a door of a host, which is closed then; returns the number of records."""
    spooler = Spooler(host_folder, make_boot(int(time.time()), secrets.randbits(32)), limits)
    door = ReplayDoor(spooler, Matcher(load_bundle(EXAMPLES / "policies").encode()), _no_room)
    for _, said in zip(range(count), endless(file), strict=False):
        door.call(said)
    records = spooler.last_seq
    spooler.close()
    return records


def _no_room(_: bool) -> NoReturn:
    raise AssertionError("the spool is too small for this benchmark")
