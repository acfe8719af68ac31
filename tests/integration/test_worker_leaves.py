"""A worker that is killed in mid-insert leaves its insert behind: the store does just that one, with its own rows."""

import http.client
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

from schemas.links import read_secret
from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until


def _connection(wardline: Wardline) -> tuple[http.client.HTTPConnection, dict[str, str]]:
    said = read_run_file(wardline.home.run_file("store"))
    assert said is not None
    host, _, port = str(said["address"]).rpartition(":")
    password = read_secret(Path(wardline.home.password("writer")))
    return http.client.HTTPConnection(host, int(port)), {"X-ClickHouse-User": "writer", "X-ClickHouse-Key": password}


def _begin(wardline: Wardline, sql: str, body: bytes = b"") -> http.client.HTTPConnection:
    connection, headers = _connection(wardline)
    connection.request("POST", "/?" + urlencode({"query": sql}), body, headers)
    return connection


def _do(wardline: Wardline, sql: str, body: bytes = b"") -> None:
    connection = _begin(wardline, sql, body)
    answer = connection.getresponse()
    said = answer.read()
    assert answer.status == 200, said
    connection.close()


def test_the_rows_of_a_client_that_left_are_its_own(wardline: Wardline) -> None:
    """Its data must not be let go while the insert waits: the next client's would take its place, and be there twice."""
    wardline.start("store")
    _do(wardline, "CREATE TABLE wardline.leaver (who String) ENGINE = MergeTree ORDER BY who")
    slow = threading.Thread(target=_do, args=(wardline, "INSERT INTO wardline.leaver SELECT toString(sleep(2)) || 'slow'"))
    slow.start()
    time.sleep(0.5)
    leaver = _begin(wardline, "INSERT INTO wardline.leaver FORMAT TabSeparated", b"leaver\n")
    time.sleep(0.3)
    leaver.close()  # as the kernel does for a process that was killed
    time.sleep(0.3)
    sql = "INSERT INTO wardline.leaver FORMAT TabSeparated"
    stayers = [threading.Thread(target=_do, args=(wardline, sql, f"stayer{n}\n".encode())) for n in range(3)]
    for thread in stayers:
        thread.start()
    for thread in (slow, *stayers):
        thread.join()
    wanted = [("0slow",), ("leaver",), ("stayer0",), ("stayer1",), ("stayer2",)]

    def rows() -> list[tuple[object, ...]]:
        return wardline.sql("SELECT who FROM wardline.leaver ORDER BY who", user="writer")

    wait_until(lambda: rows() == wanted, 10, lambda: str(rows()))
