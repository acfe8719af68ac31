"""Each sink against a real other side: a file system, a collector over HTTP, a receiver over TLS. A fault says who must act."""

import asyncio
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.ocsf import Dialect, finding_alert
from pipeline.core.siem.feeder import Batch
from pipeline.shells.siem.sinks import Sink
from pipeline.shells.siem.sinks import splunk as splunks
from pipeline.shells.siem.sinks import syslog as syslogs
from pipeline.shells.siem.sinks.file import FileSink
from pipeline.shells.siem.sinks.splunk import SplunkSink
from pipeline.shells.siem.sinks.syslog import SyslogSink
from schemas.config import Siem
from schemas.errors import OperatorFault, PeerFault
from tests.support import alerting
from tests.support.certificates import Authority
from tests.support.receivers import TOKEN, Collector, Receiver, collector, receiver, within


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def batch(sink: Sink, *numbers: int) -> Batch:
    alerts = tuple(finding_alert(alerting.finding(number), told=False, speaks=Dialect()) for number in numbers)
    return Batch(tuple(sink.pack(alert) for alert in alerts), alerts)


def domains(events: list[dict[str, Any]]) -> list[str]:
    return [event["unmapped"]["domain"] for event in events]


# -- file ----------------------------------------------------------------------------------------------------------------


def file_sink(path: Path, thread: ThreadPoolExecutor, **fields: Any) -> FileSink:
    return FileSink(Siem(name="f", path=str(path), **fields), path, thread)


def lines(path: Path) -> list[str]:
    return domains([json.loads(line) for line in path.read_text().splitlines()])


def test_a_file_gets_lines_that_are_whole_and_on_the_disk(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    path = tmp_path / "out" / "alerts.jsonl"
    sink = file_sink(path, thread)
    said = asyncio.run(sink.take(batch(sink, 1, 2)))
    assert said.startswith("2 lines, ")
    sink.append(batch(sink, 3))
    assert lines(path) == ["d1.example", "d2.example", "d3.example"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_line_that_a_crash_has_cut_off_is_gone_before_the_next(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = file_sink(path, thread)
    sink.append(batch(sink, 1))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"metadata": {"uid"')
    sink.append(batch(sink, 2))
    assert path.read_bytes().startswith(whole)
    assert lines(path) == ["d1.example", "d2.example"]
    path.write_bytes(b"x" * (2 << 20))
    sink.append(batch(sink, 3))
    assert lines(path) == ["d3.example"]


def test_a_full_disk_leaves_no_half_line_and_the_batch_goes_again(
    tmp_path: Path, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = file_sink(path, thread)
    sink.append(batch(sink, 1))
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 100:
            return real(handle, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.shells.siem.sinks.file.os.write", full)
    with pytest.raises(PeerFault, match="cannot be written: no space left on device"):
        sink.append(batch(sink, 2, 3))
    assert lines(path) == ["d1.example"]
    monkeypatch.undo()
    sink.append(batch(sink, 2, 3))
    assert lines(path) == ["d1.example", "d2.example", "d3.example"]


def test_a_file_is_renamed_by_size_and_so_many_are_kept(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = file_sink(path, thread, rotate_bytes=1 << 16, keep=3)
    size = len(sink.pack(batch(sink, 1).alerts[0])) + 1
    each = (1 << 16) // size
    for number in range(6 * each):
        sink.append(batch(sink, number))
    names = sorted(one.name for one in tmp_path.iterdir() if not one.name.startswith("."))
    assert names == ["alerts.jsonl", "alerts.jsonl.1", "alerts.jsonl.2", "alerts.jsonl.3"]
    files = [path.with_name(name) for name in ("alerts.jsonl.3", "alerts.jsonl.2", "alerts.jsonl.1", "alerts.jsonl")]
    assert all(one.stat().st_size <= 1 << 16 for one in files)
    found = [domain for one in files for domain in lines(one)]
    assert found == [f"d{number}.example" for number in range(6 * each - len(found), 6 * each)]
    assert len(found) > 3 * each - 3


def test_a_rotation_that_a_crash_has_cut_off_loses_no_file(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = file_sink(path, thread, rotate_bytes=1 << 16, keep=4)
    for number, name in enumerate(("alerts.jsonl.1", "alerts.jsonl.3", "alerts.jsonl.4")):
        path.with_name(name).write_text(f"old {number}\n")  # 2 was to be made of 1 when the power went
    path.write_bytes(b"y" * (1 << 16) + b"\n")
    sink.append(batch(sink, 1))
    there = {one.name: one.read_text()[:5] for one in tmp_path.iterdir() if one.suffix != ".lock"}
    assert there == {
        "alerts.jsonl": '{"met', "alerts.jsonl.1": "yyyyy", "alerts.jsonl.2": "old 0", "alerts.jsonl.3": "old 1",
        "alerts.jsonl.4": "old 2",
    }  # fmt: skip


def test_a_folder_that_nobody_may_write_to_is_named(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    (tmp_path / "file").write_text("")
    sink = file_sink(tmp_path / "file" / "alerts.jsonl", thread)
    with pytest.raises(PeerFault, match=r"file/alerts\.jsonl: cannot be written: "):
        sink.append(batch(sink, 1))


# -- splunk --------------------------------------------------------------------------------------------------------------


def splunk(tmp_path: Path, port: int, *, token: str = TOKEN, **fields: Any) -> SplunkSink:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(token + "\n")
    return SplunkSink(Siem(name="s", kind="splunk", url=f"http://127.0.0.1:{port}", token_file=str(path), **fields))


def taken(sink: Sink, *numbers: int) -> str:
    async def take() -> str:
        try:
            return await sink.take(batch(sink, *numbers))
        finally:
            await sink.close()

    return asyncio.run(take())


def test_splunk_gets_packed_batches_with_the_token(tmp_path: Path) -> None:
    with collector() as other:
        assert taken(splunk(tmp_path, other.port, index="sec"), 1, 2) == "200 Success (code 0)"
        assert domains([one["event"] for one in other.events]) == ["d1.example", "d2.example"]
        path, headers, _ = other.requests[0]
        assert (path, headers["Content-Encoding"], other.events[0]["index"]) == ("/services/collector/event", "gzip", "sec")


@pytest.mark.parametrize(
    ("answer", "fault", "says"),
    [
        ((503, {"text": "Server is busy", "code": 9}), PeerFault, "answers 503 code 9 (Server is busy): it is busy or stops"),
        ((500, {"text": "Internal server error", "code": 8}), PeerFault, "it is busy or stops"),
        ((429, {}), PeerFault, "answers 429: it is busy or stops"),
        ((403, {"text": "Token disabled", "code": 1}), OperatorFault, "answers 403 code 1 (Token disabled): turn the token on"),
        ((400, {"text": "Incorrect index", "code": 7}), OperatorFault, "name one that it does in siem.index"),
        ((400, {"text": "Invalid data format", "code": 6}), OperatorFault, "code 6 (Invalid data format): somebody must look"),
        ((404, {}), OperatorFault, "answers 404: is this a Splunk collector?"),
        ((200, {"text": "what", "code": 5}), OperatorFault, "answers 200 code 5"),
    ],
)
def test_an_answer_says_who_must_act(tmp_path: Path, answer: Any, fault: type[Exception], says: str) -> None:
    with collector() as other:
        other.answer = lambda events: answer
        with pytest.raises(fault) as caught:
            taken(splunk(tmp_path, other.port), 1)
    assert says in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_token_that_is_wrong_is_named_by_its_file_and_read_anew_for_each_try(tmp_path: Path) -> None:
    with collector() as other:
        sink = splunk(tmp_path, other.port, token="wrong")
        with pytest.raises(OperatorFault, match=f"put a valid token into {tmp_path}/token"):
            taken(sink, 1)
        (tmp_path / "token").write_text(TOKEN)
        assert taken(sink, 1).startswith("200")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.chmod(0o644), "mode is 0644, must be 0600"),
        (lambda path: path.write_text("two\nlines"), "is no token: 1 to 256 visible ASCII characters"),
        (lambda path: path.write_text(""), "is no token"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_token_file_that_is_not_as_it_must_be_is_refused(tmp_path: Path, change: Callable[[Path], Any], says: str) -> None:
    sink = splunk(tmp_path, 1)
    change(tmp_path / "token")
    with pytest.raises(OperatorFault, match=says) as caught:
        taken(sink, 1)
    assert "lines" not in str(caught.value)


def test_a_collector_that_is_away_is_named(tmp_path: Path) -> None:
    with collector() as other:
        port = other.port
    with pytest.raises(PeerFault, match=rf"http://127\.0\.0\.1:{port} does not answer: "):
        taken(splunk(tmp_path, port), 1)


def test_with_ack_a_batch_is_taken_when_the_indexer_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splunks, "ACK_POLL_S", 0.02)
    with collector() as other:
        other.acked = {2}
        sink = splunk(tmp_path, other.port, ack=True)
        monkeypatch.setattr(splunks, "ACK_S", 0.1)
        with pytest.raises(PeerFault, match="has not acknowledged a batch"):
            taken(sink, 1)
        monkeypatch.setattr(splunks, "ACK_S", 5.0)
        assert taken(sink, 1) == "200 Success (code 0), acknowledged as 2"
        channels = {headers["X-Splunk-Request-Channel"] for _, headers, _ in other.requests}
        assert len(channels) == 1
        other.acked = None
        with pytest.raises(OperatorFault, match="gives no acknowledgements to this token; turn siem.ack off"):
            taken(sink, 1)


def test_a_token_that_wants_acknowledgements_says_which_key_to_set(tmp_path: Path) -> None:
    with collector() as other:
        other.acked = set()
        with pytest.raises(OperatorFault, match=r"code 10 \(Data channel is missing\): .* turn siem.ack on"):
            taken(splunk(tmp_path, other.port), 1)


def test_https_is_checked_against_the_authority(tmp_path: Path) -> None:
    import ssl

    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("splunk")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    other = Collector(context=context)
    try:
        path = tmp_path / "token"
        path.touch(0o600)
        path.write_text(TOKEN)
        table = {"name": "s", "kind": "splunk", "url": f"https://127.0.0.1:{other.port}", "token_file": str(path)}
        assert taken(SplunkSink(Siem(**table, ca_file=str(authority.file))), 1).startswith("200")
        with pytest.raises(OperatorFault, match="its certificate is not accepted"):
            taken(SplunkSink(Siem(**table)), 1)
        with pytest.raises(OperatorFault, match="siem.ca_file: `/none` cannot be loaded"):
            SplunkSink(Siem(**table, ca_file="/none"))
    finally:
        other.close()


# -- syslog --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Authority, Path, Path]:
    authority = Authority(tmp_path / "ca")
    return authority, *authority.issue("syslog")


def syslog(port: int, authority: Authority | None, thread: ThreadPoolExecutor) -> SyslogSink:
    table = Siem(name="y", kind="syslog", url=f"tls://127.0.0.1:{port}", ca_file=str(authority.file) if authority else "")
    return SyslogSink(table, thread)


def test_syslog_gets_frames_on_one_connection(signed: Any, thread: ThreadPoolExecutor) -> None:
    authority, *files = signed
    with receiver(*files) as other:
        sink = syslog(other.port, authority, thread)

        async def send() -> list[str]:
            said = [await sink.take(batch(sink, *numbers)) for numbers in ((1, 2), (3,))]
            await sink.close()
            return said

        said = asyncio.run(send())
        assert all("acknowledged by the other side's kernel (TLSv1.3)" in one for one in said)
        within(5, lambda: len(other.messages) == 3)
        assert domains(other.events()) == ["d1.example", "d2.example", "d3.example"]
        assert other.problems == []
        assert len(other._open) == 1


def test_what_was_written_on_a_connection_that_broke_is_written_again(signed: Any, thread: ThreadPoolExecutor) -> None:
    authority, *files = signed
    with receiver(*files) as other:
        sink = syslog(other.port, authority, thread)

        async def send(number: int) -> None:
            for _ in range(3):  # the feeder tries again
                try:
                    await sink.take(batch(sink, number))
                    return
                except PeerFault:
                    await asyncio.sleep(0.05)

        asyncio.run(send(1))
        within(5, lambda: other.messages)
        other.dying = True
        asyncio.run(send(2))  # it reached the other side, which died with it
        other.cut()
        other.dying = False
        asyncio.run(send(3))
        within(5, lambda: {"d2.example", "d3.example"} <= set(domains(other.events())))
        asyncio.run(sink.close())


def test_a_receiver_that_nobody_trusts_is_named(signed: Any, thread: ThreadPoolExecutor) -> None:
    _, *files = signed
    with receiver(*files) as other:
        with pytest.raises(OperatorFault, match="its certificate is not accepted: unable to get local issuer certificate"):
            taken(syslog(other.port, None, thread), 1)
        assert other.messages == []


def test_a_receiver_that_is_away_or_reads_nothing_is_named(
    signed: Any, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, *files = signed
    with receiver(*files) as other:
        port = other.port
    sink = syslog(port, authority, thread)
    with pytest.raises(PeerFault, match=rf"tls://127\.0\.0\.1:{port} does not take it: connection refused"):
        taken(sink, 1)
    monkeypatch.setattr(syslogs, "SEND_S", 0.3)
    made = Receiver(*files)
    try:
        made.reads.clear()
        sink = syslog(made.port, authority, thread)
        with pytest.raises(PeerFault, match="does not take it"):
            fill(sink)
    finally:
        asyncio.run(sink.close())
        made.close()


def fill(sink: Sink) -> None:
    """Until the kernels' buffers are full."""
    for _ in range(200):
        asyncio.run(sink.take(batch(sink, *range(200))))


