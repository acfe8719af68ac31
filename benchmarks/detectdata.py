"""Data that nobody here wrote, as the records that a door would have made of it, through the shipped aggregator and detectors.

    tunnels      54 runs of DNSExfiltrator: each an agent that asks for its names, one a second, and is let out
    rita         a web day (`benchmarks.weblogs`): each client an agent; queries measured as a door measures them
    benign       the benign web capture, the same
    exploits     visits to exploit kits, the same; each visit is a session
    cloudtrail   an AWS account: an access key is a credential, its ARN the agent, the source address where it comes from; all
                 calls come in through one enforcer, since the log has none

Texts are spelled as in the store: an agent's name, `http:GET`, `Host::"name:port"`.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks import weblogs
from enforcers.core.call import target_of
from enforcers.core.query import measure
from pipeline.core.detect import detectors
from pipeline.core.detect.aggregate import Aggregator
from pipeline.core.detect.interface import Detector
from schemas.findings import Finding
from schemas.frame import ARROW_SCHEMA, Lane
from schemas.layout import VERDICT_UNSAID
from schemas.limits import FRAME_RECORDS_MAX
from schemas.records import Kind, Outcome, Verdict
from schemas.vocabulary import host_uid

COVERT: Final = "covert-dns/covert-dns-small.tar.gz"
CLOUDTRAIL: Final = "cloudtrail/invictus.tar.gz"
QUERY_KEY: Final = bytes(32)
BOOT: Final = (0x6543_2100 << 32) | 1
DAY_US: Final = 86_400_000_000
TUNNELS_START_US: Final = 1_700_000_000_000_000
_ADDRESS: Final = re.compile(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:]*")


class Told(NamedTuple):
    """One call, as far as detectors ask."""

    time_us: int
    agent: str
    action: str
    resource: str
    session: str = ""
    credential: str = ""
    client: str = ""
    enforcer: str = "enforce-1"
    query: tuple[int, int, int] = (0, 0, 0)
    """Bytes, bits, hash."""
    bytes_out: int = 0
    bytes_in: int = 0
    denied: bool = False


@dataclass(slots=True, eq=False)
class Heard:
    """What detectors said of some calls: every word in its turn, with how many calls had been taken by then."""

    words: list[tuple[int, Finding]] = field(default_factory=list)
    agent_days: dict[str, int] = field(default_factory=dict)
    """Agent -> days (UTC) with a call."""
    calls: int = 0

    def standing(self, detector: str = "") -> list[Finding]:
        """The findings that hold in the end, of one detector or all."""
        last = {finding.id: finding for _, finding in self.words}
        return [one for one in last.values() if not one.withdrawn and detector in ("", one.detector)]


def data() -> Path | None:
    """Where the shared data is: WARDLINE_DATA, or `shared/data` beside the repository."""
    named = os.environ.get("WARDLINE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    return folder if folder.is_dir() else None


def hear(calls: Iterable[Told], fresh: Sequence[Detector] | None = None, per_frame: int = FRAME_RECORDS_MAX // 2) -> Heard:
    """Take calls in the order of time, in frames as a host makes them, each call with its end; by the shipped detectors."""
    ears = list(detectors() if fresh is None else fresh)
    heard, aggregator = Heard(), Aggregator()
    days: dict[str, set[int]] = {}
    lanes: dict[str, int] = {}
    waiting: dict[str, list[Told]] = {}

    def take(enforcer: str) -> None:
        batch = records(waiting[enforcer], lanes.get(enforcer, 0) * per_frame)
        lanes[enforcer] = lanes.get(enforcer, 0) + 1
        made = aggregator.take(batch, Lane(host=enforcer, host_boot=BOOT, partition=0), lanes[enforcer])
        heard.calls += len(waiting[enforcer])
        waiting[enforcer] = []
        for ear in ears:
            heard.words += [(heard.calls, one) for one in ear.take(made.of(ear.subject))]

    for call in sorted(calls, key=lambda one: one.time_us):
        days.setdefault(call.agent, set()).add(call.time_us // DAY_US)
        batch = waiting.setdefault(call.enforcer, [])
        batch.append(call)
        if len(batch) == per_frame:
            take(call.enforcer)
    for enforcer in sorted(waiting):
        if waiting[enforcer]:
            take(enforcer)
    heard.agent_days = {agent: len(these) for agent, these in days.items()}
    return heard


def records(calls: Sequence[Told], after: int) -> pa.RecordBatch:
    """The decision of each call, numbered from `after` on, and the end of each that was let out."""
    targets = [target_of(call.resource) for call in calls]
    let_out = [at for at, call in enumerate(calls) if not call.denied]
    count, ends = len(calls), len(let_out)
    seq = np.arange(after + 1, after + count + 1, dtype=np.uint64)
    end_of = seq[let_out] if let_out else np.zeros(0, np.uint64)
    numbers: dict[str, Any] = {
        "kind": [Kind.DECISION] * count + [Kind.EFFECT] * ends,
        "boot": [BOOT] * (count + ends),
        "seq": np.concatenate([seq, end_of]),
        "call_seq": np.concatenate([seq, end_of]),
        "time": [call.time_us for call in calls] + [calls[at].time_us for at in let_out],
        "verdict": [Verdict.DENY if call.denied else Verdict.ALLOW for call in calls] + [VERDICT_UNSAID] * ends,
        "outcome": [Outcome.REFUSED if call.denied else Outcome.OPEN for call in calls] + [Outcome.OK] * ends,
        "bytes_out": [0] * count + [calls[at].bytes_out for at in let_out],
        "bytes_in": [0] * count + [calls[at].bytes_in for at in let_out],
        "query_bytes": [call.query[0] for call in calls] + [0] * ends,
        "query_bits": [call.query[1] for call in calls] + [0] * ends,
        "query_hash": [call.query[2] for call in calls] + [0] * ends,
        "trace_id": [hashlib.md5(b"%d" % n).digest() for n in [*seq.tolist(), *end_of.tolist()]],
        "parent_span": [bytes(8)] * (count + ends),
    }
    texts: dict[str, list[str]] = {
        "agent": [call.agent for call in calls], "session": [call.session for call in calls],
        "action": [call.action for call in calls], "resource": [call.resource for call in calls],
        "credential": [call.credential for call in calls], "address": [call.client for call in calls],
        "host": [target.host for target in targets], "domain": [target.domain for target in targets],
    }  # fmt: skip
    columns = []
    for one in ARROW_SCHEMA:
        if pa.types.is_dictionary(one.type):
            values = texts.get(one.name, [""] * count) + [""] * ends
            columns.append(pa.array(values, pa.utf8()).dictionary_encode())
        else:
            columns.append(pa.array(numbers.get(one.name, np.zeros(count + ends, np.int64)), pa.int64()).cast(one.type)
                           if one.name not in ("trace_id", "parent_span", "boot", "seq", "call_seq", "query_hash")
                           else pa.array(numbers[one.name], one.type))  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=ARROW_SCHEMA)


# -- the sources -----------------------------------------------------------------------------------------------------


def members(source: Path, archive: str, ending: str) -> Iterator[tuple[str, bytes]]:
    """The files of an archive whose names end so, in the order of their names."""
    with tarfile.open(source / archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda one: one.name):
            if member.isfile() and member.name.endswith(ending):
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def tunnels(source: Path) -> dict[str, list[Told]]:
    """The calls of each run of the exfiltration tool, by the name of its file."""
    found: dict[str, list[Told]] = {}
    for path, text in members(source, COVERT, ".txt"):
        name = path.rpartition("/")[2].removesuffix(".txt")
        if "-" not in name:
            continue
        lines = text.decode("utf-8-sig").splitlines()
        hosts = [line.split(",")[1].strip('"') for line in lines if line]
        found[name] = [
            Told(TUNNELS_START_US + n * 1_000_000, f"tunnel-{name}", "http:GET", host_uid(host, 443))
            for n, host in enumerate(hosts)
        ]
    return found


def web(requests: Iterable[weblogs.Request]) -> Iterator[Told]:
    """Requests of a web log. What a door could not take as a call is left out."""
    for one in requests:
        if not re.fullmatch(r"[A-Z][A-Z-]{1,31}", one.method):
            continue
        query = one.uri.partition("?")[2].encode()
        yield Told(
            round(one.time * 1e6), f"{one.log}-{one.client}", f"http:{one.method}", weblogs.resource_of(one),
            session=one.session, client=one.client, query=measure(query, QUERY_KEY), bytes_out=one.sent, bytes_in=one.received,
        )  # fmt: skip


def cloudtrail(source: Path) -> list[Told]:
    """Every use of an access key."""
    found = []
    for _, text in members(source, CLOUDTRAIL, ".json"):
        for event in json.loads(text)["Records"]:
            who = event.get("userIdentity", {})
            if not who.get("accessKeyId"):
                continue
            address = event.get("sourceIPAddress", "")
            at = datetime.fromisoformat(event["eventTime"].replace("Z", "+00:00"))
            found.append(Told(
                round(at.timestamp() * 1e6), who.get("arn", ""), "http:POST", host_uid(event["eventSource"], 443),
                credential=hashlib.sha256(who["accessKeyId"].encode()).hexdigest()[:32],
                client=address if _ADDRESS.fullmatch(address) else "",
            ))  # fmt: skip
    return found


def per_agent_day(heard: Heard, findings: Iterable[Finding]) -> Mapping[str, tuple[float, float]]:
    """Findings and days of each agent: what false findings per agent-day are counted of."""
    counts = dict.fromkeys(heard.agent_days, 0)
    for one in findings:
        counts[one.agent] = counts.get(one.agent, 0) + 1
    return {agent: (float(number), float(heard.agent_days.get(agent, 0))) for agent, number in counts.items()}
