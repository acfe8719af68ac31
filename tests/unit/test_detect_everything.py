"""All shipped detectors: the same frames say the same in any order and any share of workers, and nobody fills memory."""

import random
import resource
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.core.detect import detectors
from pipeline.core.detect.aggregate import Aggregates, Aggregator, split
from pipeline.core.detect.dedupe import Dedupe
from schemas.detectors import DETECTORS
from schemas.egress import AGENT_ROWS, CREDENTIAL_ROWS, DOMAIN_ROWS, SUBJECTS
from schemas.findings import Finding, finding_row
from schemas.frame import Lane
from schemas.records import Verdict
from tests.support.aggregating import DAY_US, START_US, content, last_words, rows_of
from tests.support.frames import effect, record

PARTITIONS = 2
Frame = tuple[list[dict[str, Any]], Lane, int]


def story(seed: int) -> list[Frame]:
    """Three agents for some days: they learn, one is turned and leaks, is refused, and a credential goes elsewhere."""
    dice = random.Random(seed)
    frames: list[Frame] = []
    seq = 0
    for day in range(3):
        for enforcer in ("enforce-1", "enforce-2"):
            records: list[dict[str, Any]] = []
            for _ in range(24):
                seq += 1
                agent = dice.choice("abc")
                turned = day == 2 and agent == "a"
                domain = "evil.org" if turned else dice.choice(["one.com", "two.com"])
                name = f"{dice.getrandbits(120):030x}" if turned else "api"
                denied = turned and dice.random() < 0.7
                time = START_US + day * DAY_US + dice.randrange(DAY_US >> 4 * turned)
                records.append(record(
                    seq, time=time, agent=agent, session=f"s{day}{agent}",
                    host=f"{name}.{domain}", domain=domain, action=dice.choice(["http:GET", "http:POST"]),
                    resource=f'Host::"{name}.{domain}:443"', credential=f"c-{agent}", address="unix", bytes_out=0,
                    verdict=Verdict.DENY if denied else Verdict.ALLOW, policies="", query_hash=dice.randrange(5),
                    query_bits=100 * (domain == "two.com"),
                ))  # fmt: skip
                if not denied:
                    seq += 1
                    records.append(effect(seq, seq - 1) | {"bytes_out": dice.randrange(9000)})
            lane = Lane(host=enforcer, host_boot=7, partition=0)
            frames += [(records[:24], lane, 2 * day + 1), (records[24:], lane, 2 * day + 2)]
    return frames


def heard(frames: Sequence[Frame], workers: int = 1, again: float = 0.0, seed: int = 0) -> list[Finding]:
    """What is said of frames that workers share by their lanes; some come again."""
    dice = random.Random(seed)
    aggregators = [Aggregator() for _ in range(workers)]
    ears = {partition: detectors() for partition in range(PARTITIONS)}
    taken = {(partition, subject): Dedupe() for partition in ears for subject in SUBJECTS}
    found: list[Finding] = []
    for records, lane, number in frames:
        for _ in range(1 + (dice.random() < again)):
            made = rows_of(records, number, lane, aggregators[int(lane.host[-1]) % workers])
            for subject in SUBJECTS:
                for partition, rows in split(made.of(subject), subject, PARTITIONS):
                    fresh = taken[partition, subject].fresh(rows)
                    for ear in ears[partition]:
                        if ear.subject == subject and fresh.num_rows:
                            found += ear.take(fresh)
    return found


def test_every_detector_is_shipped_once_and_knows_its_subject() -> None:
    shipped = detectors()
    assert {one.name for one in shipped} == set(DETECTORS) - {"chain", "risk"}
    assert len(shipped) == len({one.name for one in shipped})
    assert {one.subject for one in shipped} == set(SUBJECTS)


def test_frames_in_any_order_sent_again_and_by_two_workers_say_the_same() -> None:
    seed = 1
    frames = story(seed)
    want = heard(frames)
    said = {one.detector for one in last_words(want).values()}
    assert {"leak", "second-holder", "first-seen"} <= said
    for one in want:
        assert finding_row(one, "w")["score"] == one.score
    random.Random(seed).shuffle(frames)
    assert content(heard(frames, workers=2, again=0.3, seed=seed)) == content(want)


ROWS = 20_000
SAID = {"action": "mcp:tools/call", "resource": 'Tool::"bank/send"', "enforcer": "enforce-1", "network": "unix"}


def crowd(number: int) -> Aggregates:
    """Rows of so many agents, domains and credentials, none of them ever seen before."""
    ids = np.arange(number * ROWS, (number + 1) * ROWS)
    texts = pa.array([f"x{one}.org" for one in ids]).dictionary_encode()
    time = START_US + 2 * DAY_US + ids * 1000

    def table(schema: pa.Schema) -> pa.Table:
        columns = []
        for field in schema:
            if field.name in ("agent", "host", "domain", "credential", "task"):
                columns.append(texts)
            elif pa.types.is_dictionary(field.type):
                columns.append(pa.array([SAID.get(field.name, "")] * ROWS).dictionary_encode())
            elif pa.types.is_timestamp(field.type):
                columns.append(pa.array(time if field.type.unit == "us" else time // 1_000_000, pa.int64()).cast(field.type))
            else:
                columns.append(pa.array(ids % 7 + 1 if field.name != "frame_no" else [number + 1] * ROWS, field.type))
        return pa.Table.from_arrays(columns, schema=schema)

    return Aggregates(agents=table(AGENT_ROWS), credentials=table(CREDENTIAL_ROWS), domains=table(DOMAIN_ROWS))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_million_of_everything_leaves_memory_flat_and_is_counted() -> None:
    """Memory is looked at when every table has filled, and at the end."""
    ears = detectors()
    sizes = []
    for number in range(50):
        rows = crowd(number)
        for ear in ears:
            ear.take(rows.of(ear.subject))
        with open("/proc/self/statm", encoding="ascii") as file:
            sizes.append(int(file.read().split()[1]) * resource.getpagesize())
    for ear in ears:
        assert ear.evicted > 0, ear.name
    assert max(sizes[40:]) - sizes[15] < 64 << 20, [size >> 20 for size in sizes]
