"""OCSF events of rows of the store: valid in both versions, the same whenever they are made, bounded, and without a secret."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.ocsf import (
    Alert,
    Dialect,
    encode,
    finding_alert,
    fitted,
    refusal_alert,
    response_alert,
    revocation_alert,
    sample_alert,
)
from pipeline.core.ocsf.event import EVENT_BYTES_MAX, VERSIONS
from schemas.findings import DETECTORS, LIMIT
from tests.support import alerting
from tests.support.ocsf import problems

SYSLOG_BYTES = 7000


def events(version: str) -> dict[str, Alert]:
    """One event for each thing that can be said."""
    speaks = Dialect(version=version, product_version="0.1.0")
    finding, response, refusal = alerting.finding, alerting.response, alerting.refusal
    made = {
        "a finding": finding_alert(finding(), told=False, speaks=speaks),
        "a later version": finding_alert(finding(version=4), told=True, speaks=speaks),
        "a withdrawn one": finding_alert(finding(state="withdrawn"), told=True, speaks=speaks),
        "a false one": finding_alert(finding(state="false"), told=True, speaks=speaks, why="a mirror of ours"),
        "one without anything": finding_alert(
            finding(agent="", domain="", host="", credential="", session="", enforcer="", calls=[], chain=[], evidence="{}"),
            told=False, speaks=speaks,
        ),
        "a host by address": finding_alert(finding(host="10.0.0.9", domain=""), told=False, speaks=speaks),
        "a host with an underscore": finding_alert(finding(host="_dmarc.example.org"), told=False, speaks=speaks),
        "a revoking rule": response_alert(response(), speaks=speaks),
        "a limited rule": response_alert(response(outcome="limited", epoch=0), speaks=speaks),
        "a failed rule": response_alert(response(outcome="failed", why="control is away"), speaks=speaks),
        "a revocation": revocation_alert(alerting.revocation(), speaks=speaks),
        "a lifted one": revocation_alert(alerting.revocation(value="", actor="ops"), speaks=speaks),
        "an expired one": revocation_alert(alerting.revocation(value="", actor="control"), speaks=speaks),
        "one of a destination": revocation_alert(alerting.revocation(name="destination:a.example", actor=""), speaks=speaks),
        "a refused POST": refusal_alert(refusal(), speaks=speaks),
        "a refused PATCH": refusal_alert(refusal(action="http:PATCH"), speaks=speaks),
        "a refused tunnel": refusal_alert(refusal(action="tcp:CONNECT", scheme="", path="", client="unix"), speaks=speaks),
        "a revoked call": refusal_alert(refusal(reason="revoked", address="2001:db8::1", status=403), speaks=speaks),
        "a stale door": refusal_alert(refusal(reason="stale", agent="", session=""), speaks=speaks),
        "a shadow call": refusal_alert(refusal(mode="shadow", trace_id="0" * 32), speaks=speaks),
        "a refused tool": refusal_alert(
            refusal(action="mcp:tools/call", resource='Tool::"bank/send_money"', host="", domain=""), speaks=speaks
        ),
        "a refused list": refusal_alert(refusal(action="mcp:tools/list", resource='McpServer::"b"', client=""), speaks=speaks),
        "a sample": sample_alert(sink="splunk", time_us=alerting.NOW_US, tenant="default", speaks=speaks),
    }  # fmt: skip
    return made | {
        f"a finding of {one}": finding_alert(alerting.finding(detector=one), told=False, speaks=speaks)
        for one in (*DETECTORS, LIMIT)
    }


EVENTS = [(version, name) for version in VERSIONS for name in events(version)]


@pytest.mark.parametrize(("version", "name"), EVENTS)
def test_every_event_is_valid_ocsf(version: str, name: str) -> None:
    event = events(version)[name]
    assert problems(json.loads(encode(event.body))) == []
    if name.startswith("a finding of "):
        assert event.body["finding_info"]["analytic"]["type_id"] != 0, "OCSF's `Unknown`"
    assert event.body["metadata"]["version"] == version
    assert event.body["metadata"]["uid"] == event.uid


@pytest.mark.parametrize(("version", "name"), EVENTS)
def test_an_event_that_was_made_small_is_valid_and_says_what_went(version: str, name: str) -> None:
    alert = events(version)[name]
    for limit in (SYSLOG_BYTES, 2000, 1200):
        event = json.loads(fitted(alert, limit))
        assert problems(event) == []
        if len(encode(alert.body)) > limit:
            assert event["unmapped"]["truncated"]
            assert len(encode(event)) <= max(limit, 1900), f"{len(encode(event))} bytes"
        else:
            assert "truncated" not in event.get("unmapped", {})


def test_the_check_finds_what_is_wrong() -> None:
    """A check that passes everything would prove nothing: each of these must be named."""
    good = json.loads(encode(events("1.8.0")["a refused POST"].body))

    def wrong(change: Any) -> list[str]:
        event = copy.deepcopy(good)
        change(event)
        return problems(event)

    assert wrong(lambda e: e.update(colour="red")) == ["colour: unknown attribute"]
    assert wrong(lambda e: e["actor"]["user"].update(ai=1)) == ["actor.user.ai: unknown attribute"]
    assert wrong(lambda e: e.pop("severity_id")) == ["severity_id: is missing"]
    assert wrong(lambda e: e.update(severity_id=7))[0].startswith("severity_id: `7` is none of")
    assert wrong(lambda e: e.update(severity_id="2")) == ["severity_id: `2` is no integer_t"]
    assert wrong(lambda e: e.update(time=1.5)) == ["time: `1.5` is no timestamp_t"]
    assert wrong(lambda e: e.update(category_uid=2))[0] == "category_uid: 2, must be 4"
    assert wrong(lambda e: e.update(activity_id=3)) == ["type_uid: 400206"]
    assert wrong(lambda e: e["dst_endpoint"].update(port=70_000)) == ["dst_endpoint.port: 70000 is outside 0 to 65535"]
    assert wrong(lambda e: e["src_endpoint"].update(ip="nowhere")) == ["src_endpoint.ip: `nowhere` is no ip_t"]
    assert wrong(lambda e: e["metadata"].update(profiles=["cloud"]))[0] == "metadata.profiles: `cloud` is not one of this class"
    assert "action_id: needs the profile security_control" in wrong(lambda e: e["metadata"].update(profiles=["host"]))
    assert wrong(lambda e: e.update(src_endpoint={"port": 1}))[0].startswith("src_endpoint: has none of")
    assert wrong(lambda e: e["metadata"].update(version="1.2.0")) == ["metadata.version: `1.2.0`"]


def test_one_row_is_one_event_whenever_it_is_made() -> None:
    for name, event in events("1.8.0").items():
        assert event == events("1.8.0")[name]
    of_a_finding = [
        event for name, event in events("1.8.0").items()
        if event.body["class_uid"] == 2004 and not name.startswith(("a finding of", "one without", "a host", "a sample"))
    ]  # fmt: skip
    assert len({event.uid for event in of_a_finding}) == len(of_a_finding)
    assert len({event.body["finding_info"]["uid"] for event in of_a_finding}) == 1


def test_a_finding_is_created_updated_and_closed() -> None:
    made = events("1.8.0")
    assert [
        (made[name].body["activity_id"], made[name].body["status_id"])
        for name in ("a finding", "a later version", "a withdrawn one", "a false one")
    ] == [(1, 1), (2, 2), (3, 4), (3, 3)]
    assert made["a false one"].body["status_detail"] == "false: a mirror of ours"
    assert made["a revoking rule"].body["disposition_id"] == 24
    assert made["a limited rule"].body["status_detail"].startswith("rule leaks did not revoke agent:researcher: its limit")


def test_a_refusal_says_denied_and_a_shadow_one_observed() -> None:
    made = events("1.8.0")
    assert (made["a refused POST"].body["action_id"], made["a refused POST"].body["disposition_id"]) == (2, 2)
    assert (made["a revoked call"].body["action_id"], made["a revoked call"].body["disposition_id"]) == (2, 24)
    assert (made["a shadow call"].body["action_id"], made["a shadow call"].body["disposition_id"]) == (3, 15)
    assert made["a refused tool"].body["api"]["operation"] == "tools/call"
    old = events("1.1.0")["a shadow call"].body
    assert (old["action_id"], old["action"], old["disposition_id"]) == (99, "Observed", 15)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chain_stands_in_enrichments_and_flat_in_unmapped(version: str) -> None:
    for name in ("a finding", "a refused POST", "a refused tool"):
        body = events(version)[name].body
        (slot,) = body["enrichments"]
        assert (slot["name"], slot["type"], slot["value"]) == ("actor.user.uid", "principal_chain", 'Agent::"researcher"')
        assert [link["name"] for link in slot["data"]["links"]] == ["alice", "planner", "researcher"]
        assert [link.get("assurance") for link in slot["data"]["links"]] == [None, "signed", "issued"]
        assert body["unmapped"]["chain"] == alerting.CHAIN


ANY = st.text(max_size=40) | st.just(9000 * "\x00") | st.just("\ud800\"\\\n\u2028:/_" + 2000 * "x")
PLACES = ("agent", "session", "credential", "enforcer", "domain", "host")


@settings(max_examples=40, deadline=None)
@given(version=st.sampled_from(VERSIONS), texts=st.fixed_dictionaries(dict.fromkeys(PLACES, ANY)),
       chain=st.lists(ANY, max_size=20), evidence=ANY | st.just('{"x": [1e999, NaN, ' + "1" * 9000 + "]}"),
       terms=ANY | st.just('[{"name": 1, "value": 1, "points": 2}, {"value": 1e999, "points": 1}, 7]'))  # fmt: skip
def test_whatever_an_agent_calls_itself_the_event_is_valid_and_bounded(
    version: str, texts: dict[str, str], chain: list[str], evidence: str, terms: str
) -> None:
    speaks = Dialect(version=version)
    rows = [
        finding_alert(alerting.finding(**texts, chain=chain, evidence=evidence, terms=terms), told=False, speaks=speaks),
        refusal_alert(alerting.refusal(**texts, chain=chain, path=texts["host"], client=texts["host"]), speaks=speaks),
        refusal_alert(alerting.refusal(**texts, action="mcp:" + texts["host"], resource=texts["domain"]), speaks=speaks),
        revocation_alert(alerting.revocation(name=texts["agent"], actor=texts["host"], value=evidence), speaks=speaks),
    ]
    for alert in rows:
        data = fitted(alert)
        assert len(data) <= EVENT_BYTES_MAX
        assert data.isascii()
        assert b"\n" not in data
        assert problems(json.loads(data)) == []
        assert len(fitted(alert, SYSLOG_BYTES)) <= SYSLOG_BYTES


def test_the_largest_finding_that_a_detector_may_make_is_sent_whole() -> None:
    evidence = json.dumps({"names": ["n" * 100] * 155})
    calls = [f"{n:032x}" for n in range(100)]
    alert = finding_alert(alerting.finding(evidence=evidence, calls=calls, calls_count=10**6), told=False, speaks=Dialect())
    event = json.loads(fitted(alert))
    assert "truncated" not in event["unmapped"]
    assert len(event["finding_info"]["related_events"]) == 100
    assert event["finding_info"]["related_events_count"] == 10**6
