"""What the sink makes of each error: who is away, who refuses, who has been fenced."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, ProgrammingError

from pipeline.shells.worker.sink import Fenced, Sink, StoreAway, StoreRefuses
from schemas.config import ClickHouse, Config
from schemas.errors import OperatorFault, PeerFault, WardlineError
from schemas.home import Home
from tests.support.kafka import free_port

FAULTS: list[tuple[Exception, type[WardlineError]]] = [
    (DatabaseError("Code: 395. DB::Exception: FENCED: while executing 'FUNCTION throwIf'"), Fenced),
    (OperationalError("HTTP 503: Code: 395. DB::Exception: FENCED"), Fenced),
    (DatabaseError("Code: 252. DB::Exception: Too many parts. (TOO_MANY_PARTS)"), StoreRefuses),
    (OperationalError("Error HTTPConnectionPool(host='h', port=1): Max retries exceeded with url: /?query=SELECT"), StoreAway),
    (ProgrammingError("a setting that nobody knows"), StoreRefuses),
    (ConnectionResetError("reset by peer"), StoreAway),
    (TimeoutError(), StoreAway),
    (PeerFault("the store of `/home` is not up"), StoreAway),
    (StoreRefuses("the fence is not there"), StoreRefuses),
    (OperatorFault("writer.password: mode is 0644, must be 0600"), OperatorFault),
    (DatabaseError("ACCESS_DENIED: SELECT on system.processes"), OperatorFault),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=[f"{type(f).__name__} {str(f)[:24]}" for f, _ in FAULTS])
def test_an_error_says_who_must_act(fault: Exception, kind: type[WardlineError], tmp_path: Path) -> None:
    sink = Sink(Home(tmp_path), Config(), slot="work-1")
    with pytest.raises(kind) as raised, sink._errors():
        raise fault
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    assert "query=" not in str(raised.value)


@contextlib.contextmanager
def server(tmp_path: Path) -> Iterator[Config]:
    """The configuration of a ClickHouse server at a port where nobody listens."""
    password = tmp_path / "password"
    password.write_text("planted-secret\n")
    password.chmod(0o600)
    yield Config(clickhouse=ClickHouse(url=f"http://127.0.0.1:{free_port()}", writer_password_file=str(password)))


def test_a_server_that_nobody_answers_for_is_away_and_the_password_is_in_no_text(tmp_path: Path) -> None:
    with server(tmp_path) as config:
        sink = Sink(Home(tmp_path), config, slot="work-1")
        with pytest.raises(StoreAway) as raised:
            sink.take_over(0)
    fault: BaseException | None = raised.value
    while fault is not None:
        assert "planted-secret" not in str(fault)
        fault = fault.__cause__ or fault.__context__


def test_a_store_of_a_home_that_is_not_up_is_away(tmp_path: Path) -> None:
    with pytest.raises(StoreAway, match="is not up"):
        Sink(Home(tmp_path), Config(), slot="work-1").keep([])


def test_a_password_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with server(tmp_path) as config:
        Path(config.clickhouse.writer_password_file).chmod(0o644)
        with pytest.raises(OperatorFault, match="mode is 0644"):
            Sink(Home(tmp_path), config, slot="work-1").take_over(0)
