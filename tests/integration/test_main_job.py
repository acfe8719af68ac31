"""The main job: every recorded call of AgentDojo is decided as Cedar decides it, and is in the store once."""

from pathlib import Path

import pytest

from tests.support.home import Wardline
from tests.support.jobs import CALLS, agentdojo_calls, assert_recorded, chained, install_policies, judged, verdicts
from tests.support.kafka import Kafka

pytestmark = pytest.mark.data


def test_all_recorded_calls_on_the_embedded_default(wardline: Wardline) -> None:
    file = agentdojo_calls()
    expected = judged(file)
    allowed, refused = verdicts(expected)
    assert len(expected) == CALLS
    assert allowed
    assert refused
    wardline.up()
    done = wardline.replay(file)
    assert f"{CALLS:,}" in done.stdout
    assert f"{refused:,}" in done.stdout
    assert_recorded(wardline, expected)
    # a finished run that is resumed adds nothing
    wardline.replay(file, "--resume")
    assert wardline.sql("SELECT count() FROM calls") == [(CALLS,)]


@pytest.mark.soak
def test_all_recorded_calls_on_a_real_kafka_with_two_workers(wardline: Wardline, kafka: Kafka) -> None:
    file = agentdojo_calls()
    wardline.kafka = kafka.address
    wardline.up("--workers", "2")
    wardline.replay(file)
    assert_recorded(wardline, judged(file))
    # both have worked: an owner is a worker's name and what makes each taking of a partition unique
    workers = wardline.sql("SELECT DISTINCT splitByChar('/', owner)[1] AS worker FROM fence ORDER BY worker")
    assert workers == [("work-1",), ("work-2",)]


def test_a_chain_of_one_to_six_agents_may_do_what_each_of_them_may(wardline: Wardline, tmp_path: Path) -> None:
    file = chained(agentdojo_calls(), 3_000, tmp_path / "chains.jsonl")
    expected = judged(file)
    allowed, refused = verdicts(expected)
    assert min(allowed, refused) > len(expected) // 10
    install_policies(wardline)
    wardline.up()
    wardline.replay(file)
    assert_recorded(wardline, expected)
    # `depth` counts the principals: the person at the root and up to six agents
    depths = wardline.sql("SELECT depth, count() FROM calls GROUP BY depth ORDER BY depth")
    assert [depth for depth, _ in depths] == [2, 3, 4, 5, 6, 7]
