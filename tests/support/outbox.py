"""What hosts have sealed and nobody has stored: the records in the frames of a home's outboxes."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from enforcers.core.box import parse_box
from schemas.frame import parse_frame
from schemas.home import Home
from schemas.keys import Trust
from schemas.records import Kind, Outcome


def boxes(home: Home) -> list[Path]:
    """Every box of every host, in the order of its cuts."""
    return sorted(home.hosts.glob("*/outbox/*.box"))


def sealed(home: Home) -> list[dict[str, Any]]:
    """Every record in every frame, host by host in the order of their cuts; each frame's signature is checked on the way."""
    trust = Trust(home.trusted("hosts"))
    records: list[dict[str, Any]] = []
    for path in boxes(home):
        data = path.read_bytes()
        for ref in parse_box(data, str(path)).frames:
            frame = parse_frame(data[ref.offset : ref.offset + ref.size])
            verify = trust.verifier(frame.head.lane.host)
            assert verify is not None
            frame.verify(verify)
            plain = pa.Codec("zstd").decompress(frame.payload, frame.head.inflated_bytes)
            records += pa.ipc.open_stream(plain).read_all().to_pylist()
    return records


def decisions(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The decisions, in the order of the callers' own numbers."""
    return sorted((r for r in records if r["kind"] == Kind.DECISION), key=lambda r: int(r["ref"]))


def is_whole(record: dict[str, Any]) -> bool:
    """Whether it is a decision that says how its call ended."""
    return record["kind"] == Kind.DECISION and bool(record["verdict"]) and record["outcome"] != Outcome.OPEN


def ends(records: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """For each call, (boot, seq of its decision), what ended it: a whole decision is that too."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for record in records:
        if is_whole(record):
            found.setdefault((record["boot"], record["call_seq"]), []).append(record | {"kind": Kind.EFFECT})
        elif record["kind"] in (Kind.EFFECT, Kind.LOST):
            found.setdefault((record["boot"], record["call_seq"]), []).append(record)
    return found
