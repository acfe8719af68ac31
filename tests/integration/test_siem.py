"""The process `siem` with real sinks on the other side: what the store has arrives, through kills, once its receivers are back.

Rows are put into the store as the worker puts them; broker and store are real, nothing else runs.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from schemas.config import load_config
from schemas.findings import FINDING_SCHEMA
from schemas.links import kafka_servers
from schemas.process import read_run_file
from schemas.store import CONTROL_SCHEMA, RESPONSE_SCHEMA
from schemas.topics import Topics
from tests.support import alerting
from tests.support.certificates import Authority
from tests.support.home import Wardline
from tests.support.ocsf import problems
from tests.support.receivers import OK, TOKEN, Collector, Receiver, within
from tests.support.store import Store, decision, effect, frame_of

CONFIG = """
[[siem]]
name = "lines"
path = "alerts.jsonl"
events = ["findings", "revocations", "refusals"]

[[siem]]
name = "splunk"
kind = "splunk"
url = "http://127.0.0.1:{splunk}"
token_file = "{folder}/token"
retry_s = 1

[[siem]]
name = "syslog"
kind = "syslog"
url = "tls://127.0.0.1:{syslog}"
ca_file = "{ca}"
ocsf = "1.1.0"
retry_s = 1
"""


class Rows:
    """Puts rows into the store, as the worker does."""

    def __init__(self, wardline: Wardline) -> None:
        self.store = Store(wardline)
        self._epoch = 0

    def finding(self, number: int, **fields: Any) -> str:
        row = alerting.finding(number, **fields)
        times = {name: row[f"{name}_us"] for name in ("started", "ended", "time")}
        self.store.append("findings_stored", [{name: (row | times)[name] for name in FINDING_SCHEMA.names}], FINDING_SCHEMA)
        return str(row["id"])

    def response(self, finding: str) -> None:
        row = {"finding": finding, "rule": "leaks", "selector": "agent:researcher", "state": "revoked", "epoch": 1, "for_s": 60,
               "time": time.time_ns() // 1000, "why": "", "tenant": "default", "worker": "work-1"}  # fmt: skip
        self.store.append("responses_stored", [row], RESPONSE_SCHEMA)

    def revocation(self, agent: str) -> None:
        self._entry("revocation", f"agent:{agent}", {"kind": "agent", "name": agent, "cascade": False, "reason": "leaks"})

    def false(self, number: int) -> None:
        subject = alerting.finding(number)["subject"]
        self._entry("exception", "e1", {"detector": "leak", "subject": subject, "owner": "ops", "reason": "a mirror"})

    def _entry(self, kind: str, name: str, value: dict[str, Any]) -> None:
        self._epoch += 1
        row = {"journal": 1, "epoch": self._epoch, "key": f"{kind}/{name}", "kind": kind, "name": name, "actor": "ops",
               "value": json.dumps(value), "time": time.time_ns() // 1000, "tenant": "default"}  # fmt: skip
        self.store.append("control", [row], CONTROL_SCHEMA)


@pytest.fixture
def certificates(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def read_topic(home: Wardline, count: int) -> list[tuple[str, dict[str, Any]]]:
    """What a consumer of the topic gets: (key, event)."""
    config = load_config(home.home.config)
    servers = kafka_servers(home.home, config)
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "t", "auto.offset.reset": "earliest"})
    consumer.subscribe([Topics(config.kafka.prefix).alerts])
    found = []
    try:
        while len(found) < count:
            message = consumer.poll(10)
            assert message is not None, f"{len(found)} of {count}"
            assert not message.error()
            found.append((message.key().decode(), json.loads(message.value())))
    finally:
        consumer.close()
    return found


def words(events: list[dict[str, Any]]) -> set[tuple[int, int, str]]:
    """What is said: class, activity, and which finding's domain, whose revocation or which call."""
    return {
        (event["class_uid"], event["activity_id"], event["unmapped"].get("domain") or event["unmapped"].get("selector", ""))
        for event in events
    }


def test_everything_arrives_through_kills_and_receivers_that_were_away(tmp_path: Path, certificates: Authority) -> None:
    files = certificates.issue("syslog")
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    splunk, syslog = Collector(), Receiver(*files)
    ports = {"splunk": splunk.port, "syslog": syslog.port}
    config = CONFIG.format(**ports, folder=tmp_path, ca=certificates.file)
    with Wardline(tmp_path / "home", config=config) as home:
        for name in ("broker", "store", "siem"):
            home.start(name)
        rows = Rows(home)
        lines = home.home.root / "alerts.jsonl"

        def told() -> list[dict[str, Any]]:
            return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []

        def sinks() -> dict[str, dict[str, Any]]:
            return {sink["name"]: sink for sink in (read_run_file(home.home.run_file("siem")) or {}).get("sinks", ())}

        # all sinks there: each gets what it asked for, in its version
        first = rows.finding(1)
        rows.revocation("researcher")
        rows.response(first)
        refused = [decision(1, verdict=0, reason="forbid"), decision(2), effect(3, 2, verdict=0, reason="revoked"), decision(4)]
        rows.store.insert(frame_of(refused, frame_no=1, ingested_s=int(time.time())))
        every = {(2004, 1, "d1.example"), (2004, 2, "d1.example"), (3004, 1, "agent:researcher")}
        calls = {(6003, 99, "")}
        within(20, lambda: words(told()) == every | calls and len(told()) == 5)
        within(20, lambda: words([one["event"] for one in list(splunk.events)]) == every)
        within(20, lambda: words(syslog.events()) == every)
        of_topic = read_topic(home, 3)
        assert words([event for _, event in of_topic]) == every
        assert {key for key, _ in of_topic} == {"researcher"}
        for event in [*told(), *(one["event"] for one in splunk.events), *syslog.events(), *(event for _, event in of_topic)]:
            assert problems(event) == []
        assert {event["metadata"]["version"] for event in syslog.events()} == {"1.1.0"}
        assert {event["metadata"]["version"] for event in told()} == {"1.8.0"}
        assert syslog.problems == []

        # both receivers away: the file and the topic go on, and status says what waits
        splunk.close()
        syslog.close()
        rows.finding(2)
        within(20, lambda: (2004, 1, "d2.example") in words(told()))
        within(20, lambda: sinks()["splunk"]["waits_for"] and sinks()["syslog"]["waits_for"])
        status = home.status()
        assert {sink["name"] for sink in status["siem"]} == {"lines", "splunk", "syslog", "alerts"}
        (blocked,) = (line for line in status["blocked"] if line.startswith("siem: splunk: http://127.0.0.1:"))
        assert "does not answer" in blocked
        home.kill("siem")
        rows.finding(3)
        rows.false(1)
        # an insert that waited half an hour for the store carries the time of its first try
        late = [decision(10, verdict=0, reason="forbid", resource='Tool::"late/one"', domain="late.example")]
        rows.store.insert(frame_of(late, frame_no=2, ingested_s=int(time.time()) - 1800))

        # killed between the answer and the cursor: the same event again, and none lost
        splunk, syslog = Collector(ports["splunk"]), Receiver(*files, port=ports["syslog"])

        def die(events: list[dict[str, Any]]) -> Any:
            if any(one["event"]["unmapped"].get("domain") == "d3.example" for one in events):
                splunk.answer = lambda events: OK
                os.kill(home.pid("siem"), signal.SIGKILL)
            return OK

        splunk.answer = die
        process = home.popen("siem")
        assert process.wait(60) == -signal.SIGKILL
        home.start("siem")
        rest = {(2004, 1, "d2.example"), (2004, 1, "d3.example"), (2004, 3, "d1.example")}
        within(20, lambda: words([one["event"] for one in list(splunk.events)]) == rest)
        within(20, lambda: rest <= words(syslog.events()))
        within(20, lambda: words(told()) == every | calls | rest | {(6003, 99, "late.example")})
        # what the collector had and the cursor had not comes twice
        within(20, lambda: len(splunk.events) > len({one["fields"]["uid"] for one in splunk.events}))
        assert all(one["fields"]["uid"] == one["event"]["metadata"]["uid"] for one in splunk.events)
        within(20, lambda: json.loads((home.home.siem / "splunk.json").read_bytes())["marks"]["exceptions"]["seen"])

        # nothing is sent again by an orderly restart
        before = len(told()), len(splunk.events)
        assert home.stop("siem") == 0
        home.start("siem")
        rows.finding(4)
        within(20, lambda: len(told()) > before[0] and len(splunk.events) > before[1])
        assert (len(told()), len(splunk.events)) == (before[0] + 1, before[1] + 1)

        done = home.run("siem", "test", "splunk")
        where = f"splunk: taken by http://127.0.0.1:{ports['splunk']}"
        assert done.stdout.splitlines()[:2] == [where, "  came back  200 Success (code 0)"]
        assert splunk.events[-1]["event"]["severity_id"] == 1
        splunk.close()
        syslog.close()
        for log in home.home.log.glob("*.log"):
            assert TOKEN not in log.read_text()
        assert home.stop("siem") == 0
