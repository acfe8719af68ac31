"""The views on records that were planted: what a call says, who has been seen, and every kind of gap by its name."""

import json

import pytest

from schemas.migrate import MIGRATIONS
from schemas.records import Kind, Outcome, Verdict
from schemas.store import CONTROL_SCHEMA
from tests.support.store import NOW_S, Row, Store, decision, effect, frame_of, whole_decision

LANE = f"{77:016x}"
DOOR = f"{5:016x}"


def calls(store: Store, columns: str, where: str = "1") -> list[tuple[object, ...]]:
    return store.rows(f"SELECT {columns} FROM calls WHERE {where} ORDER BY boot, seq")


def gaps(store: Store) -> list[tuple[object, ...]]:
    return store.rows("SELECT what, boot, partition, first, last, missing FROM gaps ORDER BY ALL")


def test_a_call_is_its_decision_and_the_last_word_of_what_followed(store: Store) -> None:
    store.insert(frame_of([
        decision(1),
        effect(2, 1, error="it broke", outcome=int(Outcome.ERROR), status=500),
        decision(3, verdict=int(Verdict.DENY), outcome=int(Outcome.REFUSED), reason="forbid"),
        decision(4),
        decision(5, address="10.0.0.1"),
        effect(6, 5, verdict=int(Verdict.DENY), outcome=int(Outcome.REFUSED), reason="address", address="10.0.0.9"),
        decision(7),
        effect(8, 7, kind=int(Kind.LOST), outcome=int(Outcome.LOST), status=0, bytes_out=0, bytes_in=0),
        decision(9),
        effect(10, 9, kind=int(Kind.PROGRESS), outcome=0, bytes_out=5),
        effect(11, 9),
        decision(12),
        effect(13, 12, kind=int(Kind.PROGRESS), outcome=0, status=0, bytes_out=900, bytes_in=7, address="192.0.2.1:443"),
        effect(14, 12, kind=int(Kind.LOST), outcome=int(Outcome.LOST), status=0, bytes_out=0, bytes_in=0, duration_us=0),
    ], frame_no=1))  # fmt: skip
    assert calls(store, "seq, verdict, outcome, reason, status, error") == [
        (1, "allow", "error", "permit", 500, "it broke"),
        (3, "deny", "refused", "forbid", 0, ""),
        (4, "allow", "", "permit", 0, ""),
        (5, "deny", "refused", "address", 200, ""),
        (7, "allow", "lost", "permit", 0, ""),
        (9, "allow", "ok", "permit", 200, ""),
        (12, "allow", "lost", "permit", 0, ""),
    ]
    assert calls(store, "bytes_out, bytes_in, duration_ms, ended > time", "seq = 9") == [(10, 20, 1.5, True)]
    assert calls(store, "address", "seq = 5") == [("10.0.0.9",)]
    assert calls(store, "ended", "seq = 4") == [(None,)]
    assert calls(store, "bytes_out, bytes_in, address, duration_ms", "seq = 12") == [(900, 7, "192.0.2.1:443", 1.5)]
    assert store.rows("SELECT count(), uniqExact(call_id) FROM calls") == [(7, 7)]


def test_a_whole_decision_is_a_call_that_has_ended(store: Store) -> None:
    """In every column what the view says of the same call in two records, but for `ended`: nobody recorded an end."""
    here, there = {"address": "10.1.2.3"}, {"address": "192.0.2.1:443"}
    both = {"address": "10.1.2.3\x1f192.0.2.1:443"}
    failed = {"outcome": int(Outcome.ERROR), "status": 502, "bytes_in": 0}
    store.insert(frame_of([
        decision(1, **here), effect(2, 1, **there), whole_decision(3, **both),
        decision(4), effect(5, 4, **failed), whole_decision(6, **failed),
        decision(7), effect(8, 7, **there), whole_decision(9, address="\x1f192.0.2.1:443"),
        decision(10, **here), effect(11, 10, status=0, duration_us=0), whole_decision(12, status=0, duration_us=0, **here),
        decision(13, **here),
    ], frame_no=1))  # fmt: skip
    own = "call_id, seq, time, recorded, ended, trace_id"
    rows = calls(store, f"* EXCEPT ({', '.join(own.split(', '))})")
    pairs = rows[:-1]
    assert pairs[::2] == pairs[1::2]
    said = "client, address, verdict, outcome, status, error, bytes_out, bytes_in, duration_ms"
    assert calls(store, said, "seq IN (3, 6, 9, 12, 13)") == [
        ("10.1.2.3", "192.0.2.1:443", "allow", "ok", 200, "", 10, 20, 1.5),
        ("", "", "allow", "error", 502, "", 10, 0, 1.5),
        ("", "192.0.2.1:443", "allow", "ok", 200, "", 10, 20, 1.5),
        ("10.1.2.3", "", "allow", "ok", 0, "", 10, 20, 0.0),
        ("10.1.2.3", "", "allow", "", 0, "", 0, 0, 0.0),
    ]
    assert calls(store, "dateDiff('microsecond', time, ended)", "seq IN (3, 12, 13)") == [(1500,), (0,), (None,)]


def test_the_view_of_calls_has_the_columns_it_had_before_there_were_whole_decisions(store: Store) -> None:
    """Whoever asks by SQL, or reads lines of JSON, finds what he found: names, order and types."""
    def columns() -> list[tuple[object, ...]]:
        return [(name, kind) for name, kind, *_ in store.rows("DESCRIBE TABLE calls")]

    now = columns()
    for number in (5, 7):
        for statement in MIGRATIONS[number - 1].statements(store.database):
            if "VIEW `wardline`.calls AS" in statement:
                store.run(statement)
        assert columns() == now


def test_an_open_tunnel_shows_its_bytes_so_far_and_is_still_open(store: Store) -> None:
    progress = {"kind": int(Kind.PROGRESS), "outcome": 0, "status": 0, "address": "192.0.2.1:443"}
    columns = "outcome, ended, bytes_out, bytes_in, address, verdict, reason"
    store.insert(frame_of([decision(1), effect(2, 1, bytes_out=5, bytes_in=1, **progress)], frame_no=1))
    assert calls(store, columns) == [("", None, 5, 1, "192.0.2.1:443", "allow", "permit")]
    store.insert(frame_of([effect(3, 1, bytes_out=70, bytes_in=2, **progress)], frame_no=2))
    assert calls(store, columns) == [("", None, 70, 2, "192.0.2.1:443", "allow", "permit")]
    cut = {"verdict": int(Verdict.DENY), "outcome": int(Outcome.REFUSED), "reason": "revoked", "status": 0}
    store.insert(frame_of([effect(4, 1, bytes_out=80, bytes_in=2, **cut)], frame_no=3))
    ((outcome, ended, *rest),) = calls(store, columns)
    assert (outcome, rest) == ("refused", [80, 2, "192.0.2.1:443", "deny", "revoked"])
    assert ended is not None


def test_a_call_is_found_by_the_tables_key_on_both_sides_of_its_join(store: Store) -> None:
    """A million records must not be read for one call: ClickHouse narrows decisions and ends by boot and call_seq."""
    store.insert(frame_of([decision(1), effect(2, 1)], frame_no=1))
    plan = "\n".join(row[0] for row in store.rows("EXPLAIN indexes = 1 SELECT * FROM calls WHERE boot IN (5) AND seq IN (1)"))
    assert plan.count("(call_seq in [1, 1])") + plan.count("(call_seq in 1-element set)") == 2, plan


def test_clients_that_want_nulls_from_joins_are_told_of_whole_decisions_too(store: Store) -> None:
    store.insert(frame_of([whole_decision(1), decision(2), decision(3), effect(4, 3)], frame_no=1))
    query = "SELECT * FROM calls ORDER BY seq"
    assert store.rows(query, settings={"join_use_nulls": 1}) == store.rows(query)


def refused(seq: int, agent: str, count: int, reason: str = "identity", what: str = "secret", **fields: object) -> Row:
    kind = {"kind": int(Kind.COUNT), "outcome": int(Outcome.REFUSED), "verdict": int(Verdict.DENY), "status": 407}
    return decision(seq, **kind, agent=agent, count=count, reason=reason, error=what, chain="", root="", resource="", **fields)


def test_refusals_count_what_no_call_came_of(store: Store) -> None:
    store.insert(frame_of([
        refused(1, "ghost", 1), refused(2, "ghost", 99_999), refused(3, "", 2, "malformed", "two-hosts"), decision(4),
    ], frame_no=1))  # fmt: skip
    columns = "agent, reason, what, status, sum(count), min(boot), min(seq)"
    assert store.rows(f"SELECT {columns} FROM refusals GROUP BY 1, 2, 3, 4 ORDER BY agent DESC") == [
        ("ghost", "identity", "secret", 407, 100_000, DOOR, 1), ("", "malformed", "two-hosts", 407, 2, DOOR, 3),
    ]  # fmt: skip
    assert calls(store, "seq") == [(4,)], "they are no calls"


def listed(epoch: int, name: str, *, there: bool = True) -> Row:
    value = json.dumps({"name": name}) if there else ""
    return {"journal": 1, "epoch": epoch, "key": f"agent/{name}", "kind": "agent", "name": name, "value": value,
            "time": NOW_S * 10**6, "actor": "uid:op", "tenant": "default"}  # fmt: skip


def test_a_name_that_is_claimed_without_proof_is_a_shadow_unless_it_is_an_agents(store: Store) -> None:
    rows = [listed(1, "planner"), listed(2, "gone"), listed(3, "gone", there=False), listed(4, "quiet")]
    store.append("control", rows, CONTROL_SCHEMA)
    store.insert(frame_of([
        decision(1, proof="secret"), decision(2, proof="jws"), decision(3, agent="coder"),
        refused(4, "planner", 3), refused(5, "ghost", 7), refused(6, "gone", 1), refused(7, "quiet", 2), refused(8, "", 9),
        refused(9, "ghost", 5, "malformed", "bare-lf"), refused(10, "ghost", 1),
    ], frame_no=1))  # fmt: skip
    columns = "kind, name, calls, failed, credentials"
    assert store.rows(f"SELECT {columns} FROM inventory WHERE kind IN ('agent', 'shadow') ORDER BY ALL") == [
        ("agent", "coder", 1, 0, [""]),
        ("agent", "planner", 2, 3, ["jws", "secret"]),
        ("agent", "quiet", 0, 2, []),
        ("shadow", "ghost", 0, 8, []),
        ("shadow", "gone", 0, 1, []),
    ]
    seen = "SELECT first_seen, last_seen FROM inventory WHERE name = {name:String} AND kind IN ('agent', 'shadow')"
    ((first, last),) = store.rows(seen, parameters={"name": "planner"})
    assert (first.microsecond, last.microsecond) == (1, 2), "an attempt under its name is not the agent"
    ((first, last),) = store.rows(seen, parameters={"name": "ghost"})
    assert (first.microsecond, last.microsecond) == (5, 10)


def test_a_call_has_the_columns_that_are_promised(store: Store) -> None:
    store.insert(frame_of([decision(0x1F, boot=0xAB)], frame_no=1, ranges=[0xAB, 0x1F, 0x1F]))
    names = "call_id, agent, root, session, action, resource, verdict, policies, reason, trace_id, chain, depth, door, mode"
    assert calls(store, names) == [(
        "00000000000000ab000000000000001f", "planner", 'User::"alice"', "s", "mcp:tools/call", 'Tool::"bank/send"', "allow",
        ["p1", "p2"], "permit", decision(0x1F)["trace_id"].hex(), ['User::"alice"', 'Agent::"planner"'], 2, "replay", "enforce",
    )]  # fmt: skip


def test_a_client_that_wants_nulls_from_joins_gets_the_same_calls(store: Store) -> None:
    store.insert(frame_of([decision(1), decision(2, verdict=0), effect(3, 1)], frame_no=1))
    query = "SELECT seq, verdict, outcome, bytes_out, reason FROM calls ORDER BY seq"
    assert store.rows(query, settings={"join_use_nulls": 1}) == store.rows(query)


def test_what_a_call_and_its_end_say_may_come_in_different_inserts_and_orders(store: Store) -> None:
    store.insert(frame_of([effect(2, 1)], frame_no=2, partition=1, previous=bytes(32)))
    assert calls(store, "seq") == []
    store.insert(frame_of([decision(1)], frame_no=1))
    assert calls(store, "seq, outcome") == [(1, "ok")]


def test_the_inventory_counts_agents_tools_destinations_and_principals(store: Store) -> None:
    store.insert(frame_of([
        decision(1),
        decision(2, verdict=0, agent="coder", chain='Agent::"coder"', resource='Tool::"a/\\"q\\\\"'),
        decision(3, resource='Host::"x.example.org:443"', host="x.example.org"),
        whole_decision(4, resource='Host::"y.example.org:443"'),
        effect(5, 1),
    ], frame_no=1))  # fmt: skip
    assert store.rows("SELECT kind, name, calls, allowed, denied FROM inventory ORDER BY ALL") == [
        ("agent", "coder", 1, 0, 1),
        ("agent", "planner", 3, 3, 0),
        ("destination", "x.example.org:443", 1, 1, 0),
        ("destination", "y.example.org:443", 1, 1, 0),
        ("principal", 'Agent::"coder"', 1, 0, 1),
        ("principal", 'Agent::"planner"', 3, 3, 0),
        ("principal", 'User::"alice"', 3, 3, 0),
        ("tool", 'a/"q\\', 1, 0, 1),
        ("tool", "bank/send", 1, 1, 0),
    ]
    ((first, last),) = store.rows("SELECT first_seen, last_seen FROM inventory WHERE kind = 'agent' AND name = 'planner'")
    assert (first.microsecond, last.microsecond) == (1, 4)


def test_the_inventory_counts_a_call_that_was_taken_back_as_denied(store: Store) -> None:
    """Its decision let it out, its effect has a verdict of its own: for an address that may not be dialled, or a revocation."""
    host = {"resource": 'Host::"x.example.org:443"', "host": "x.example.org"}
    back = {"verdict": int(Verdict.DENY), "outcome": int(Outcome.REFUSED)}
    store.insert(frame_of([
        *(decision(seq, **host) for seq in (1, 2, 3, 4)), decision(5), decision(6, verdict=0, **host),
        effect(7, 1, reason="address", **back), effect(8, 2, reason="revoked", **back), effect(9, 3),
        effect(10, 5, reason="revoked", **back), decision(1, boot=6, **host),
    ], frame_no=1))  # fmt: skip
    assert store.rows("SELECT kind, name, calls, allowed, denied FROM inventory ORDER BY ALL") == [
        ("agent", "planner", 7, 3, 4),
        ("destination", "x.example.org:443", 6, 3, 3),
        ("principal", 'Agent::"planner"', 7, 3, 4),
        ("principal", 'User::"alice"', 7, 3, 4),
        ("tool", "bank/send", 1, 0, 1),
    ]
    verdicts = [verdict for (verdict,) in calls(store, "verdict")]
    assert (verdicts.count("allow"), verdicts.count("deny")) == (3, 4), "as the calls themselves say"


def test_frames_show_what_each_one_says(store: Store) -> None:
    store.insert(frame_of([decision(1), decision(2)], frame_no=1, partition=3, flag="dead"))
    ((enforcer, boot, partition, number, records, flag, previous, ranges),) = store.rows(
        "SELECT enforcer, enforcer_boot, partition, frame_no, records, flag, previous, ranges FROM frames"
    )
    assert (enforcer, boot, partition, number, records, flag) == ("enforce-1", LANE, 3, 1, 2, "dead")
    assert (previous, ranges) == ("0" * 64, [(DOOR, 1, 2)])


def whole(store: Store, frames: int = 4, each: int = 5) -> None:
    """Frames 1 to `frames` of one lane, `each` records in every one."""
    rows = []
    for number in range(1, frames + 1):
        first = (number - 1) * each + 1
        rows += frame_of([decision(seq) for seq in range(first, first + each)], frame_no=number)
    store.insert(rows)


def test_what_is_whole_has_no_gap(store: Store) -> None:
    whole(store)
    assert gaps(store) == []


@pytest.mark.parametrize(
    ("first", "last"), [(1, 1), (1, 3), (10, 10), (7, 12), (20, 20), (18, 20)], ids=str
)
def test_missing_records_are_named(store: Store, first: int, last: int) -> None:
    whole(store)
    store.run(f"ALTER TABLE records DELETE WHERE boot = 5 AND seq BETWEEN {first} AND {last}")
    assert gaps(store) == [("record", DOOR, 0, first, last, last - first + 1)]


def test_all_records_of_a_door_are_named_by_the_frames_that_were_cut_from_it(store: Store) -> None:
    whole(store)
    store.run("ALTER TABLE records DELETE WHERE boot = 5")
    assert gaps(store) == [("record", DOOR, 0, 1, 20, 20)]


def test_first_middle_and_last_record_and_a_frame_are_each_named_at_once(store: Store) -> None:
    whole(store, frames=5)
    store.run("ALTER TABLE records DELETE WHERE boot = 5 AND seq IN (1, 13, 25) OR frame_no = 2")
    assert gaps(store) == [
        ("frame", LANE, 0, 2, 2, 1),
        ("record", DOOR, 0, 1, 1, 1),
        ("record", DOOR, 0, 6, 10, 5),
        ("record", DOOR, 0, 13, 13, 1),
        ("record", DOOR, 0, 25, 25, 1),
    ]


def test_the_first_frame_of_a_lane_is_missed_too(store: Store) -> None:
    whole(store)
    store.run("ALTER TABLE records DELETE WHERE boot = 0 AND seq = 1")
    assert gaps(store) == [("frame", LANE, 0, 1, 1, 1)]


def test_a_record_that_is_there_twice_does_not_hide_one_that_is_missing(store: Store) -> None:
    whole(store)
    store.run("ALTER TABLE records DELETE WHERE boot = 5 AND seq = 8")
    store.insert([decision(9) | {"frame_no": 2, "ingested": NOW_S}])
    assert gaps(store) == [("record", DOOR, 0, 8, 8, 1)]


def test_a_frame_that_names_another_predecessor_is_named(store: Store) -> None:
    whole(store, frames=1)
    store.insert(frame_of([decision(seq) for seq in range(6, 9)], frame_no=2, previous=b"x" * 32))
    store.insert(frame_of([decision(9)], frame_no=1, partition=1, previous=b"y" * 32))
    assert gaps(store) == [("chain", LANE, 0, 2, 2, 0), ("chain", LANE, 1, 1, 1, 0)]


def test_lanes_and_doors_do_not_mix(store: Store) -> None:
    store.insert(frame_of([decision(1), decision(2)], frame_no=1, partition=0))
    store.insert(frame_of([decision(1, boot=6)], frame_no=1, partition=1))
    store.insert(frame_of([decision(2, boot=6)], frame_no=1, partition=1, enforcer="enforce-2"))
    assert gaps(store) == []
