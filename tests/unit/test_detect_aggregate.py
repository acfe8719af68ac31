"""Sums of a frame's calls by agent, credential and domain: what is counted where, and that no order of frames changes a sum."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.detect.aggregate import Aggregates, Aggregator, split, where_of
from schemas.egress import AGENT_ROWS, CREDENTIAL_ROWS, DOMAIN_ROWS, network_of, subject_partition
from schemas.records import SEPARATOR, Kind, Outcome, Verdict
from tests.support.aggregating import DAY_US, LANE, START_US, plain, rows_of
from tests.support.frames import Record, batch_of, effect, record

WEB: dict[str, Any] = {
    "host": "api.example.com", "domain": "example.com", "resource": 'Host::"api.example.com:443"', "bytes_out": 0,
}  # fmt: skip


def web(seq: int, **fields: Any) -> dict[str, Any]:
    return record(seq, **(WEB | {"action": "http:GET", "time": START_US + seq} | fields))


def test_rows_have_the_schemas_of_the_contract() -> None:
    made = rows_of([web(1, credential="c")])
    assert [made.agents.schema, made.credentials.schema, made.domains.schema] == [AGENT_ROWS, CREDENTIAL_ROWS, DOMAIN_ROWS]
    for table in (made.agents, made.credentials, made.domains):
        table.validate(full=True)


def test_calls_of_one_second_place_and_query_are_one_row_with_the_first_calls_id() -> None:
    rows = plain(rows_of([web(3), web(2), web(1, query_hash=5, query_bits=9)]).agents)
    assert [(row["calls"], row["call_seq"], row["query_bits"]) for row in rows] == [(1, 1, 9), (2, 2, 0)]


def test_a_call_without_a_session_is_of_the_task_that_its_trace_is() -> None:
    rows = plain(rows_of([web(1, session="", trace_id=bytes(range(16))), web(2)]).agents)
    assert {row["task"] for row in rows} == {bytes(range(16)).hex(), "s-1"}


def test_bytes_of_an_end_count_where_its_call_was_decided() -> None:
    aggregator = Aggregator()
    rows_of([web(1)], 1, aggregator=aggregator)
    progress = effect(2, 1) | {"kind": Kind.PROGRESS, "bytes_out": 30, "bytes_in": 4, "time": START_US + DAY_US}
    rows = plain(rows_of([progress], 2, aggregator=aggregator).agents)
    last = effect(3, 1) | {"bytes_out": 70, "bytes_in": 4, "time": START_US + DAY_US}
    rows += plain(rows_of([last], 3, aggregator=aggregator).agents)
    said = [(row["frame_no"], row["calls"], row["bytes_out"], row["bytes_in"]) for row in rows]
    assert said == [(2, 0, 30, 4), (3, 0, 40, 0)]
    assert {(row["host"], row["second"], row["call_seq"]) for row in rows} == {("api.example.com", START_US // 1_000_000, 1)}
    assert aggregator.entries == 0


def test_an_end_that_comes_before_its_decision_waits_for_it() -> None:
    aggregator = Aggregator()
    back = effect(2, 1) | {"bytes_out": 70, "verdict": Verdict.DENY, "outcome": 3}
    assert rows_of([back], 2, aggregator=aggregator).agents.num_rows == 0
    rows = plain(rows_of([web(1)], 1, aggregator=aggregator).agents)
    assert sorted((row["calls"], row["denied"], row["bytes_out"]) for row in rows) == [(0, 1, 70), (1, 0, 0)]
    assert aggregator.entries == 0


def test_a_refused_call_is_denied_and_never_open() -> None:
    aggregator = Aggregator()
    rows = plain(rows_of([web(1, verdict=Verdict.DENY)], aggregator=aggregator).agents)
    assert [(row["calls"], row["denied"]) for row in rows] == [(1, 1)]
    assert aggregator.entries == 0


def test_a_whole_decision_has_its_bytes_with_it_and_is_never_open() -> None:
    aggregator = Aggregator()
    rows = plain(rows_of([web(1, outcome=Outcome.OK, bytes_out=70, bytes_in=9)], aggregator=aggregator).agents)
    assert [(row["calls"], row["denied"], row["bytes_out"], row["bytes_in"]) for row in rows] == [(1, 0, 70, 9)]
    assert aggregator.entries == 0


def test_calls_beyond_the_limit_make_room_and_are_counted() -> None:
    aggregator = Aggregator(open_calls=10)
    rows_of([web(seq, resource=f'Host::"h{seq}:443"') for seq in range(1, 101)], aggregator=aggregator)
    assert (aggregator.entries, aggregator.evicted) == (10, 90)
    ends = [effect(200 + seq, seq) | {"bytes_out": 5} for seq in range(91, 101)]
    rows = plain(rows_of(ends, 2, aggregator=aggregator).agents)
    assert {row["resource"] for row in rows} == {f'Host::"h{seq}:443"' for seq in range(91, 101)}


def test_a_holder_is_an_enforcer_and_a_network() -> None:
    calls = [web(1, credential="c", address="10.1.2.3", proof="jws"), web(2, credential="c", address="10.1.2.200", proof="jws"),
             web(3, credential="c", address="10.1.3.1"), web(4)]  # fmt: skip
    rows = plain(rows_of(calls).credentials)
    assert [(row["enforcer"], row["network"], row["calls"], row["call_seq"]) for row in rows] == [
        ("enforce-1", "10.1.2.0/24", 2, 1), ("enforce-1", "10.1.3.0/24", 1, 3),
    ]  # fmt: skip
    assert (rows[0]["first"], rows[0]["last"]) == (START_US + 1, START_US + 2)


def test_the_network_of_a_whole_decision_is_its_callers_whatever_was_dialled() -> None:
    clients = ("10.1.2.3", "2001:db8:1:2::3", "unix", "")
    dialled = [(client, f"192.0.2.{n}:443") for client in clients for n in range(20)]
    calls = [
        web(seq, credential="c", outcome=Outcome.OK, address=SEPARATOR.join(pair)) for seq, pair in enumerate(dialled, 1)
    ]
    found = {row["network"]: row["calls"] for row in plain(rows_of([*calls, web(99, credential="c")]).credentials)}
    assert found == {"10.1.2.0/24": 20, "2001:db8:1::/48": 20, "unix": 20, "": 21}


@pytest.mark.parametrize(
    ("client", "network"),
    [("10.1.2.3", "10.1.2.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48"), ("unix", "unix"), ("", ""), ("10.1.2", "10.1.2")],
)
def test_the_network_of_a_client(client: str, network: str) -> None:
    assert network_of(client) == network


def test_writes_are_calls_that_may_carry_something_out() -> None:
    actions = ["http:GET", "http:POST", "http:HEAD", "http:PROPFIND", "tcp:CONNECT", "mcp:tools/call"]
    calls = [web(n, action=action) for n, action in enumerate(actions, 1)] + [web(9, query_bits=3, query_hash=1)]
    rows = [row for row in plain(rows_of(calls).domains) if row["domain"]]
    assert [(row["calls"], row["writes"]) for row in rows] == [(7, 4)]


def test_a_domain_row_is_about_the_domain_the_host_or_the_server() -> None:
    assert where_of("example.com", "api.example.com", "") == "example.com"
    assert where_of("", "10.1.2.3", 'Host::"10.1.2.3:443"') == "10.1.2.3"
    assert where_of("", "", 'Tool::"bank/send"') == "bank"
    calls = [web(1), web(2, domain="", host="10.1.2.3"), web(3, domain="", host="", resource='Tool::"bank/send"')]
    assert {row["domain"] for row in plain(rows_of(calls).domains)} == {"example.com", "10.1.2.3", "bank", ""}


def test_since_when_an_agent_is_known_is_said_once_and_to_every_partition() -> None:
    aggregator = Aggregator()
    first = rows_of([web(5)], 1, aggregator=aggregator).domains
    again = rows_of([web(7)], 2, aggregator=aggregator).domains
    earlier = rows_of([web(2)], 3, aggregator=aggregator).domains
    said = [[(row["first"], row["calls"]) for row in plain(table) if not row["domain"]] for table in (first, again, earlier)]
    assert said == [[(START_US + 5, 0)], [], [(START_US + 2, 0)]]
    parts = dict(split(first, "domain", 4))
    assert sorted(parts) == [0, 1, 2, 3]
    here = subject_partition("example.com", 4)
    assert [part.num_rows for _, part in sorted(parts.items())] == [1 + (number == here) for number in range(4)]


def test_a_partition_gets_the_rows_and_texts_of_its_subjects_alone() -> None:
    table = rows_of([web(seq, agent=f"a{seq}", session=f"s{seq}") for seq in range(1, 200)]).agents
    seen = 0
    for partition, part in split(table, "agent", 8):
        rows = part.to_pylist()
        assert {subject_partition(row["agent"], 8) for row in rows} == {partition}
        assert len(part["task"].chunk(0).dictionary) == len(rows)
        seen += len(rows)
    assert seen == 199


def totals(tables: list[Aggregates]) -> list[Counter[Any]]:
    """Sums over all frames, by everything but frame, first call and task: bytes stand beside the decision, with its task, where
    they came in its frame, and alone where they came in another."""
    found = []
    for subject, values in (("agent", ("calls", "denied", "bytes_out", "bytes_in")), ("credential", ("calls",)),
                            ("domain", ("calls", "writes", "denied", "bytes_out"))):  # fmt: skip
        sums: Counter[Any] = Counter()
        left = {"lane_host", "lane_boot", "lane_partition", "frame_no", "call_boot", "call_seq", "time", "first", "last",
                "task"}
        for made in tables:
            for row in plain(made.of(subject)):
                for value in values:
                    sums[(value, *(row[name] for name in row if name not in left and name not in values))] += row[value]
        found.append(+sums)
    return found


def every_row(tables: list[Aggregates], subject: str = "agent") -> Counter[Any]:
    return Counter(tuple(row.values()) for made in tables for row in plain(made.of(subject)))


def stored(frames: Iterable[tuple[int, Sequence[Record]]]) -> pa.Table:
    """Frames as the store has them, one behind the other."""
    return pa.concat_tables(
        pa.Table.from_batches([batch_of(frame)])
        .append_column("enforcer", pa.array([LANE.host] * len(frame)))
        .append_column("enforcer_boot", pa.array([LANE.host_boot] * len(frame), pa.uint64()))
        .append_column("partition", pa.array([LANE.partition] * len(frame), pa.uint32()))
        .append_column("frame_no", pa.array([number] * len(frame), pa.uint64()))
        for number, frame in frames
    )


texts = st.sampled_from(["", "c"])
call = st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.booleans(), texts, st.integers(0, 50), st.integers(0, 3))
calls = st.lists(call, min_size=1, max_size=8)


@settings(max_examples=15, deadline=None)
@given(calls=calls, cut=st.integers(1, 5), data=st.data())
def test_no_order_of_frames_changes_a_sum_and_a_rebuild_has_the_same_rows(
    calls: list[tuple[str, int, bool, str, int, int]], cut: int, data: st.DataObject
) -> None:
    records: list[dict[str, Any]] = []
    for seq, (agent, host, allowed, credential, sent, ends) in enumerate(calls, 1):
        records.append(web(seq, agent=agent, host=f"h{host}.example.com", credential=credential, verdict=int(allowed)))
        if allowed and ends:
            records.append(effect(100 + seq, seq) | {"kind": Kind.PROGRESS, "bytes_out": sent})
            if ends > 1:
                verdict = Verdict.DENY if ends == 3 else 255
                records.append(effect(200 + seq, seq) | {"bytes_out": 2 * sent, "verdict": verdict})
    frames = [records[at : at + cut] for at in range(0, len(records), cut)]
    inorder, shuffled = Aggregator(), Aggregator()
    want = [rows_of(frame, number, aggregator=inorder) for number, frame in enumerate(frames, 1)]
    order = data.draw(st.permutations(list(enumerate(frames, 1))))
    got = [rows_of(frame, number, aggregator=shuffled) for number, frame in order]
    assert totals(got) == totals(want)
    at_once = Aggregator().take_all([(batch_of(frame), LANE, number) for number, frame in order])
    assert totals([at_once]) == totals(want)
    again = Aggregator().rebuild(stored(order))
    assert totals([again]) == totals(want)
    for one in (again, at_once):
        assert every_row([one]) == every_row(want)


Told = tuple[str, int, str, str, str, int, Outcome]
"""Agent, host, client, credential, how it is told, bytes sent, outcome."""

ways = st.sampled_from(["refused", "open", "split", "whole", "whole", "whole", "late"])
tales = st.tuples(
    st.sampled_from("ab"), st.integers(0, 2), st.sampled_from(["", "10.1.2.3", "10.1.9.9", "unix"]), texts, ways,
    st.integers(0, 50), st.sampled_from([Outcome.OK, Outcome.ERROR]),
)  # fmt: skip


def frames_of(calls: list[Told], cut: int, *, whole: bool) -> list[tuple[int, list[Record]]]:
    """Calls in frames of `cut` each, and what ends `late` in one behind them; those told `whole` as one record or as two."""
    frames: list[list[Record]] = [[] for _ in range(0, len(calls), cut)]
    late: list[Record] = []
    for seq, (agent, host, client, credential, way, sent, outcome) in enumerate(calls, 1):
        frame, dialled = frames[(seq - 1) // cut], f"192.0.2.{host}:443"
        said = {"agent": agent, "host": f"h{host}.example.com", "credential": credential, "address": client}
        ended = {"outcome": outcome, "status": 200, "bytes_out": sent, "bytes_in": 2 * sent}
        if way == "whole" and whole:
            frame.append(web(seq, **said | ended | {"address": f"{client}{SEPARATOR}{dialled}"}))
            continue
        frame.append(web(seq, **said, verdict=int(way != "refused")))
        if way in ("split", "whole", "late"):
            (late if way == "late" else frame).append(effect(100 + seq, seq) | ended | {"address": dialled})
    return list(enumerate([*frames, late] if late else frames, 1))


@settings(max_examples=25, deadline=None)
@given(calls=st.lists(tales, min_size=1, max_size=10), cut=st.integers(1, 4), data=st.data())
def test_it_is_all_one_whether_a_call_comes_whole_or_as_two_records_of_one_frame(
    calls: list[Told], cut: int, data: st.DataObject
) -> None:
    whole, split_up = (frames_of(calls, cut, whole=one) for one in (True, False))
    order = data.draw(st.permutations(range(len(whole))))
    said = []
    for frames in (whole, split_up):
        shuffled = [frames[at] for at in order]
        aggregator, again = Aggregator(), Aggregator()
        one_by_one = [rows_of(frame, number, aggregator=aggregator) for number, frame in shuffled]
        at_once = Aggregator().take_all([(batch_of(frame), LANE, number) for number, frame in shuffled])
        rebuilt = again.rebuild(stored(shuffled))
        assert aggregator.entries == again.entries == sum(way == "open" for *_, way, _, _ in calls)
        said.append([every_row(some, subject) for some in (one_by_one, [at_once], [rebuilt])
                     for subject in ("agent", "credential", "domain")])  # fmt: skip
    assert said[0] == said[1]
