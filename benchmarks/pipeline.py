"""How fast, how small and how soon are calls in the store?

    python -m benchmarks pipeline [--calls=FILE] [--repeats=N] [--number=CALLS] [--arm=looking]

    bare      insert_arrow of the same rows, in the same batches, into a table of the same form, through the same store
    frames    the shipped host, broker, worker and store, from signed frames in the outbox to rows: the clock runs from the
              host's start to its hearing that everything is stored, and until every call was looked at
    record    the same with `[detect] on = false`: what recording alone does
    json      `benchmarks.jsonpeer`: the same consumer, store, batches and guarantees with one signed JSON message per record

Beside that: what the detectors keep of 1,000 agents, and the stitcher of 1,000 live traces. With `--arm=looking` only `frames`
and `record`, and seconds of the worker's processor beside their rates: those tell what looking costs where others work too.

Each repeat has homes of its own, `record` one and the others one; `record` runs first in every other repeat. FILE is a
recorded-calls file; the default is the sample that Wardline comes with. A call is a decision and, when it was let out, an
effect.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import clickhouse_connect
import pyarrow as pa

from benchmarks import jsonpeer
from benchmarks.detectmemory import bytes_for_1000_agents
from benchmarks.stitching import pace
from benchmarks.workload import SAMPLE, fill_spool
from enforcers.core.box import head_bytes, parse_box
from pipeline.core.intake import Accepted, judge
from pipeline.core.ledger import Ledger
from pipeline.core.rows import FrameRow, insert_table
from schemas.config import Config, load_config
from schemas.keys import Trust
from schemas.links import store_link
from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until

CALLS: Final = 600_000
JSON_RECORDS: Final = 30_000
RATE: Final = 200
RATE_S: Final = 30
BARE_MIN: Final = 0.35
JSON_MIN: Final = 20.0
DETECT_MIN: Final = 0.70
WIRE_MAX: Final = 170.0
DISK_MAX: Final = 120.0
VISIBLE_MAX_S: Final = 1.0
POLL_S: Final = 0.02
TRACE_CALLS: Final = 3
"""Calls of a trace where it is told what a thousand of them take."""

VISIBLE_LATE_S: Final = 10
"""So late no call may come into view; as long is looked back for calls that come out of turn."""


CONFIG: Final = "[enforcer]\nspool_bytes = 2147483648\noutbox_bytes = 2147483648\n"


@dataclass(slots=True)
class Pass:
    """One repeat: rows a second of each way, and bytes of a call."""

    bare: float
    frames: float
    record: float
    json: float
    plain_json: float
    wire: float
    disk: float
    merged: float


def main(argv: list[str]) -> int:
    """Measure and print; returns 1 when a limit is missed."""
    options = dict(word.lstrip("-").partition("=")[::2] for word in argv)
    file, repeats = Path(options.get("calls") or SAMPLE), int(options.get("repeats") or 3)
    if options.get("arm") == "looking":
        return _looking(file, repeats, int(options.get("number") or CALLS))
    passes = []
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            passes.append(_repeat(Path(folder), file, first=number % 2 == 0))
        print(f"  repeat {number + 1}: {passes[-1]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        visible = _visible(Path(folder) / "home", file)
    return _report(passes, visible)


def _report(passes: Sequence[Pass], visible: Sequence[float]) -> int:
    def middle(values: Sequence[float]) -> str:
        return f"{statistics.median(values):10,.2f}  ({min(values):,.2f} to {max(values):,.2f})"

    to_bare = [p.record / p.bare for p in passes]
    to_json = [p.frames / p.json for p in passes]
    to_record = [p.frames / p.record for p in passes]
    p99 = statistics.quantiles(visible, n=100)[98]
    print(f"frames, rows/s                    {middle([p.frames for p in passes])}")
    print(f"record alone, rows/s              {middle([p.record for p in passes])}")
    print(f"bare insert_arrow, rows/s         {middle([p.bare for p in passes])}")
    print(f"JSON per record, signed, rows/s   {middle([p.json for p in passes])}")
    print(f"JSON per record, no proof, rows/s {middle([p.plain_json for p in passes])}")
    print(f"record alone / bare               {middle(to_bare)}  at least {BARE_MIN}")
    print(f"frames / bare                     {middle([p.frames / p.bare for p in passes])}")
    print(f"frames / record alone             {middle(to_record)}  at least {DETECT_MIN}")
    print(f"frames / JSON, signed             {middle(to_json)}  at least {JSON_MIN}")
    print(f"frames / JSON, no proof           {middle([p.frames / p.plain_json for p in passes])}")
    print(f"bytes a call on the wire          {middle([p.wire for p in passes])}  at most {WIRE_MAX}")
    print(f"bytes a call on disk, as inserted {middle([p.disk for p in passes])}  at most {DISK_MAX}")
    print(f"bytes a call on disk, merged      {middle([p.merged for p in passes])}")
    print(f"detectors, MiB for 1,000 agents   {bytes_for_1000_agents() / 2**20:10,.2f}")
    pace(TRACE_CALLS)
    print(f"decision to row in `calls`, ms    p50 {1000 * statistics.median(visible):.0f}  p99 {1000 * p99:.0f}"
          f"  max {1000 * max(visible):.0f}  at {RATE}/s, at most {1000 * VISIBLE_MAX_S:.0f}")  # fmt: skip
    good = (
        statistics.median(to_bare) >= BARE_MIN
        and statistics.median(to_json) >= JSON_MIN
        and statistics.median(to_record) >= DETECT_MIN
        and max(p.wire for p in passes) <= WIRE_MAX
        and max(p.disk for p in passes) <= DISK_MAX
        and p99 <= VISIBLE_MAX_S
    )
    return 0 if good else 1


def _repeat(folder: Path, file: Path, *, first: bool) -> Pass:
    record = _record(folder / "record", file) if first else 0.0
    made = _pass(folder / "home", file)
    made.record = record or _record(folder / "record", file)
    return made


def _looking(file: Path, repeats: int, calls: int) -> int:
    """Only what looking takes: rates with it and without, in turn, and the worker's processor."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * repeats):
        on = number % 4 in (1, 2)
        with tempfile.TemporaryDirectory() as folder:
            rate, cost = _rate(Path(folder) / "home", file, calls, on=on)
        rates[on].append(rate)
        print(f"  {'frames' if on else 'record'}: {rates[on][-1]:8,.0f} rows/s, {cost:5.1f} us of the worker a row", flush=True)
    share = statistics.median(rates[True]) / statistics.median(rates[False])
    print(f"frames / record alone             {share:10,.2f}  at least {DETECT_MIN}")
    print(f"detectors, MiB for 1,000 agents   {bytes_for_1000_agents() / 2**20:10,.2f}")
    pace(TRACE_CALLS)
    return 0 if share >= DETECT_MIN else 1


def _processor_s(home: Wardline) -> float:
    """Seconds that the worker has computed."""
    fields = Path(f"/proc/{home.pid('work-1')}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rate(root: Path, file: Path, calls: int, *, on: bool) -> tuple[float, float]:
    """Rows a second, with or without what looks at them, and microseconds of the worker's processor a row."""
    with Wardline(root, config=CONFIG if on else f"{CONFIG}[detect]\non = false\n") as home:
        records = _sealed(home, load_config(home.home.config), file, calls)
        home.start_all(enforcers=0)
        before = _processor_s(home)
        rate = _frames(home, records, calls)
        return rate, (_processor_s(home) - before) / records * 1e6


def _record(root: Path, file: Path) -> float:
    """Rows a second with nothing that looks at them."""
    return _rate(root, file, CALLS, on=False)[0]


def _sealed(home: Wardline, config: Config, file: Path, calls: int = CALLS) -> int:
    """Have the calls sealed into the outbox; returns how many records they have."""
    records = fill_spool(home.home.host("enforce-1"), file, calls, config.enforcer)
    host = home.home.run_file("enforce-1")
    home.start("enforce-1", wait=False)
    wait_until(lambda: _said(host).get("sealed") == records, 120, lambda: f"{records} are sealed: {_said(host)}")
    home.kill("enforce-1")
    return records


def _frames(home: Wardline, records: int, calls: int = CALLS) -> float:
    """Rows a second from the outbox to the store, and to the last look at them."""
    host, worker = home.home.run_file("enforce-1"), home.home.run_file("work-1")
    home.start("enforce-1", wait=False)
    began = time.perf_counter()

    def done() -> bool:
        looked = _said(worker).get("lookout", {"calls": calls})["calls"]
        return looked == calls and (not any(host_folder.glob("outbox/*.box")) or _said(host).get("stored") == records)

    host_folder = home.home.host("enforce-1")
    wait_until(done, 300, lambda: f"{records} are stored: {_said(host)}, {_said(worker)}", every=POLL_S)
    return records / (time.perf_counter() - began)


def _pass(root: Path, file: Path) -> Pass:
    with Wardline(root, config=CONFIG) as home:
        config = load_config(home.home.config)
        records = _sealed(home, config, file)
        tables, wire = _tables(home, config)
        home.start_all(enforcers=0)
        frames = _frames(home, records)
        with _client(home, config) as client:
            assert client.query("SELECT count() FROM calls").result_rows == [(CALLS,)]
            disk = _bytes_on_disk(client) / CALLS
            client.command("OPTIMIZE TABLE records FINAL", settings={"receive_timeout": 300})
            merged = _bytes_on_disk(client) / CALLS
            client.command("CREATE TABLE bare AS records")
            began = time.perf_counter()
            for table in tables:
                client.insert_arrow("bare", table)
            bare = sum(table.num_rows for table in tables) / (time.perf_counter() - began)
        home.kill("enforce-1")
        home.stop("work-1")
        sample = tables[0].slice(0, JSON_RECORDS)
        signed = jsonpeer.rows_per_second(home.home, config, sample, signed=True)
        plain = jsonpeer.rows_per_second(home.home, config, sample, signed=False)
        return Pass(bare=bare, frames=frames, record=0.0, json=signed, plain_json=plain, wire=wire / CALLS, disk=disk,
                    merged=merged)  # fmt: skip


def _said(path: Path) -> dict[str, Any]:
    return read_run_file(path) or {}


def _client(home: Wardline, config: Config) -> Any:
    link = store_link(home.home, config, "writer")
    return clickhouse_connect.get_client(**link.options(), database=link.database, autogenerate_session_id=False)


def _bytes_on_disk(client: Any) -> int:
    return int(client.command("SELECT sum(bytes_on_disk) FROM system.parts WHERE table = 'records' AND active"))


def _tables(home: Wardline, config: Config) -> tuple[list[pa.Table], int]:
    """The rows that the worker will insert, in batches of its size, and the bytes of the frames that carry them."""
    ledger, wire = Ledger(), 0
    for partition in range(config.kafka.partitions):
        ledger.take(partition, {}, {})
    key_of = Trust(home.home.trusted("hosts")).verifier
    tables: list[pa.Table] = []
    batch: list[FrameRow] = []
    rows = 0
    for box in sorted(home.home.host("enforce-1").glob("outbox/*.box")):
        data = box.read_bytes()
        for ref in parse_box(data[: head_bytes(data[:64])], str(box)).frames:
            message = data[ref.offset : ref.offset + ref.size]
            wire += len(message)
            judged = judge(message, ref.lane.partition, key_of, ledger)
            assert isinstance(judged, Accepted)
            batch.append(FrameRow(head=judged.head, digest=judged.digest, signed=judged.signed, wire_bytes=judged.wire_bytes,
                                  offset=0, flag=judged.flag, batch=judged.batch))  # fmt: skip
            ledger.begin(judged.head.lane, judged.head.frame_no, judged.digest, judged.head.previous)
            rows += batch[-1].rows
            if rows >= config.worker.batch_records:
                tables.append(insert_table(batch, int(time.time())))
                batch, rows = [], 0
    if batch:
        tables.append(insert_table(batch, int(time.time())))
    return tables, wire


def _visible(root: Path, file: Path) -> list[float]:
    """Seconds from a decision's record to the first look at which the call is in `calls`, at RATE calls a second."""
    calls = root.parent / "rated.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    wanted = RATE * RATE_S
    calls.write_bytes(b"".join((lines * (wanted // len(lines) + 1))[:wanted]))
    with Wardline(root) as home:
        home.start_all()
        config = load_config(home.home.config)
        replay = home.popen("replay", str(calls), "--rate", str(RATE))
        seen: dict[int, float] = {}
        deadline = time.monotonic() + RATE_S + VISIBLE_LATE_S
        with _client(home, config) as client:
            while len(seen) < wanted:
                # partitions are stored in any order, so a call may come in behind later ones
                after = max(seen, default=0) - 2 * RATE * VISIBLE_LATE_S
                rows = client.query(f"SELECT seq, toUnixTimestamp64Micro(recorded) FROM calls WHERE toInt64(seq) > {after}")
                now = time.time()
                for seq, recorded in rows.result_rows:
                    seen.setdefault(seq, now - recorded / 1e6)
                assert replay.poll() in (None, 0), home.said("replay")
                assert time.monotonic() < deadline, f"{len(seen)} of {wanted} calls are visible"
                time.sleep(POLL_S)
        assert replay.wait(60) == 0
    return list(seen.values())
