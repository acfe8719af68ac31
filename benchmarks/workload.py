"""Calls for the pipeline's benchmark: recorded calls again and again, as if other agents' runs made them.

Each round of the file has sessions, traces and spans of its own, so that what is compressed is what a fleet would send, not
one thousand lines over and over. The records go through the replay's own door and core, and a call has its end in its
decision's record where its host, at its shipped pace, would not have read that before.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from enforcers.doors.obeyed import Obeyed
from enforcers.doors.recorded import CallFile
from enforcers.doors.replay import ReplayDoor
from enforcers.doors.spooler import Spooler
from ext.board import BoardWriter
from pipeline.policy.load import load_bundle
from schemas.calls import RecordedCall
from schemas.config import Enforcer
from schemas.process import private_dir
from schemas.records import make_boot

EXAMPLES: Final = Path(__file__).resolve().parents[1] / "pipeline" / "cli" / "examples"
SAMPLE: Final = EXAMPLES / "calls.jsonl"
FRESH_NS: Final = 5_000_000_000
APART_NS: Final = 53_000
"""Between two calls of a host: some 19,000 a second. It says only where in a cut of its host's a call falls."""


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
    board = BoardWriter(str(host_folder / "board"), 1)
    bundle = load_bundle(EXAMPLES / "policies").encode()
    (private_dir(host_folder / "bundle") / f"{hashlib.sha256(bundle).hexdigest()}.json").write_bytes(bundle)
    obeyed = Obeyed(host_folder / "board", host_folder / "bundle", spooler.folder)
    board.replace([], epoch=1, paused=False, policy=hashlib.sha256(bundle).digest())

    def rest(why: str, *, may_stop: bool) -> None:
        """Nobody writes a heartbeat here."""
        assert "spool" not in why, f"the spool is too small for this benchmark: {why}"
        board.fresh(time.monotonic_ns() + FRESH_NS)
        obeyed.look(wait=True)

    complete, each_ns = spooler.complete, limits.seal_ms * 1_000_000

    def complete_in_time(seq: int, *end: Any) -> bool:
        """A replayed call ends at once; one that lasts is read by its host before it ends, if a cut falls between the two."""
        began_ns, duration_ns = seq * APART_NS, end[4]
        return began_ns // each_ns == (began_ns + duration_ns) // each_ns and complete(seq, *end)

    spooler.complete = complete_in_time
    door = ReplayDoor(spooler, obeyed, rest)
    for _, said in zip(range(count), endless(file), strict=False):
        door.call(said)
    records = spooler.last_seq
    spooler.close()
    board.close()
    return records
