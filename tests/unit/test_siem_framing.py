"""The bytes of each kind of sink, as the other side has to read them."""

import gzip
import json
import re

import pytest

from pipeline.core.ocsf import Dialect, fitted
from pipeline.core.siem.framing import SYSLOG_BYTES_MAX, hec_body, json_lines, syslog_event, syslog_frames
from tests.support import alerting
from tests.support.ocsf import problems
from tests.unit.test_ocsf import events

STAMP = "2026-01-31T12:00:00.000000Z"

RFC5424 = re.compile(
    r"<(?P<pri>[0-9]{1,3})>1 (?P<stamp>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{1,6}Z) (?P<host>[!-~]{1,255})"
    r" (?P<app>[!-~]{1,48}) (?P<pid>[!-~]{1,128}) (?P<msgid>[!-~]{1,32}) - (?P<msg>[ -~]*)"
)
"""RFC 5424, section 6, for a message without structured data."""


def frames(data: bytes) -> list[bytes]:
    """RFC 5425, section 4.3: `MSG-LEN SP SYSLOG-MSG`, and MSG-LEN does not begin with 0."""
    found = []
    while data:
        head = re.match(rb"([1-9][0-9]*) ", data)
        assert head, data[:40]
        end = head.end() + int(head[1])
        assert len(data) >= end
        assert end <= SYSLOG_BYTES_MAX
        found.append(data[head.end() : end])
        data = data[end:]
    return found


def test_every_event_is_a_syslog_message_of_less_than_8_kib() -> None:
    alerts = list(events("1.8.0").values())
    big = json.dumps({"names": ["n" * 100] * 155})
    from pipeline.core.ocsf import finding_alert

    alerts.append(finding_alert(alerting.finding(evidence=big, title="\u2028\x00ü" * 500), told=False, speaks=Dialect()))
    packed = [syslog_event(alert) for alert in alerts]
    data = syslog_frames(alerts, packed, host="h\u00fcgel 1", pid=77, stamps=[STAMP] * len(alerts))
    messages = frames(data)
    assert len(messages) == len(alerts)
    for message, alert in zip(messages, alerts, strict=True):
        found = RFC5424.fullmatch(message.decode("ascii"))
        assert found, message[:100]
        assert (found["host"], found["app"], found["pid"]) == ("h?gel?1", "wardline", "77")
        assert found["msgid"] == f"OCSF{alert.body['class_uid']}"
        assert int(found["pri"]) // 8 == 13
        event = json.loads(found["msg"])
        assert problems(event) == []
        assert event["metadata"]["uid"] == alert.uid
    last = json.loads(RFC5424.fullmatch(messages[-1].decode()).group("msg"))  # type: ignore[union-attr]
    assert last["unmapped"]["truncated"][0] == "evidence"
    assert last["metadata"]["is_truncated"] is True


@pytest.mark.parametrize(("severity", "level"), [("critical", 2), ("high", 3), ("medium", 4), ("low", 5)])
def test_the_severity_is_syslogs(severity: str, level: int) -> None:
    from pipeline.core.ocsf import finding_alert

    alert = finding_alert(alerting.finding(severity=severity), told=False, speaks=Dialect())
    (message,) = frames(syslog_frames([alert], [syslog_event(alert)], host="h", pid=1, stamps=[STAMP]))
    assert message.startswith(b"<%d>1 " % (13 * 8 + level))


def test_a_body_for_splunk_is_objects_one_after_the_other_packed_and_the_same_each_time() -> None:
    alerts = list(events("1.1.0").values())[:3]
    packed = [fitted(alert) for alert in alerts]
    body = hec_body(alerts, packed, host="here", index="security")
    assert body == hec_body(alerts, packed, host="here", index="security"), "what is sent again is the same"
    decoder, text, found = json.JSONDecoder(), gzip.decompress(body).decode(), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    for one, alert in zip(found, alerts, strict=True):
        assert one["event"] == json.loads(fitted(alert))
        assert (one["fields"]["uid"], one["index"], one["host"]) == (alert.uid, "security", "here")
        assert (one["source"], one["sourcetype"]) == ("wardline", "wardline:ocsf")
        assert float(one["time"]) == pytest.approx(alert.time_us / 10**6, abs=0.001)
    assert b'"index"' not in gzip.decompress(hec_body(alerts, packed, host="here", index=""))


def test_json_lines_end_in_a_newline_each() -> None:
    assert json_lines([b"{}", b"[]"]) == b"{}\n[]\n"
