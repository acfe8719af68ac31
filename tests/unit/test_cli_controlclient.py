"""How a command speaks to control: what it makes of each answer, and of none. The other end here is a few lines of HTTP.

The commands against the real control are in tests/integration/test_cli_control.py.
"""

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.shells import controlclient
from pipeline.shells.controlclient import Control, Refused, Unsettled
from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home

Answer = tuple[int, dict[str, Any]] | None
"""A status and a body, or None where the connection is cut."""


class Listener(socketserver.ThreadingUnixStreamServer):
    """Answers each question by a function of (method, path, body)."""

    daemon_threads = True

    def __init__(self, home: Home, answer: Callable[[str, str, Any], Answer]) -> None:
        home.run.mkdir(parents=True, exist_ok=True)
        home.control_socket.unlink(missing_ok=True)
        self.asked: list[tuple[str, str, Any]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_one(handler, method: str) -> None:
                size = int(handler.headers.get("Content-Length") or 0)
                body = json.loads(handler.rfile.read(size)) if size else None
                self.asked.append((method, handler.path, body))
                said = answer(method, handler.path, body)
                if said is None:
                    handler.close_connection = True
                    return
                data = json.dumps(said[1]).encode()
                handler.send_response(said[0])
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)

            def do_GET(handler) -> None:
                handler.handle_one("GET")

            def do_POST(handler) -> None:
                handler.handle_one("POST")

            def log_message(handler, *_: object) -> None:
                pass

        super().__init__(str(home.control_socket), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


Listen = Callable[[Callable[[str, str, Any], Answer]], Listener]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def listen(home: Home) -> Iterator[Listen]:
    made: list[Listener] = []

    def start(answer: Callable[[str, str, Any], Answer]) -> Listener:
        made.append(Listener(home, answer))
        return made[-1]

    yield start
    for one in made:
        one.shutdown()
        one.server_close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlclient, "SETTLE_S", 2.0)


MADE = {"epoch": 7, "epochs": [6, 7], "result": {"agent": "a"}}


def test_a_change_goes_out_with_an_id_of_its_own_and_comes_back_as_an_epoch(home: Home, listen: Listen) -> None:
    control = listen(lambda *_: (200, MADE))
    client = Control(home, Config())
    change = client.change("agent-remove", name="a")
    assert (change.epoch, change.result) == (7, {"agent": "a"})
    client.change("agent-remove", name="a")
    bodies = [body for _, _, body in control.asked]
    assert [(method, path) for method, path, _ in control.asked] == [("POST", "/changes")] * 2
    assert bodies[0] | {"id": ""} == {"id": "", "do": "agent-remove", "name": "a"}
    assert bodies[0]["id"] != bodies[1]["id"]


def test_a_change_that_is_asked_for_once_has_the_id_that_it_is_given(home: Home, listen: Listen) -> None:
    control = listen(lambda *_: (200, MADE))
    assert Control(home, Config()).change_once("respond-0123456789", "revoke", kind="agent", name="a").epoch == 7
    body = {"id": "respond-0123456789", "do": "revoke", "kind": "agent", "name": "a"}
    assert control.asked == [("POST", "/changes", body)]


def test_a_change_that_was_made_under_the_id_with_other_words_is_answered_as_it_was_made(home: Home, listen: Listen) -> None:
    control = listen(lambda method, *_: (200, MADE) if method == "GET" else (409, {"error": "made already"}))
    assert Control(home, Config()).change_once("respond-0123456789", "revoke", reason="newer").epoch == 7
    assert [path for _, path, _ in control.asked] == ["/changes", "/changes/respond-0123456789"]


def test_a_connection_that_breaks_in_a_change_that_is_asked_for_again_is_left_to_who_asks(home: Home, listen: Listen) -> None:
    """To ask what became of it would have control refuse the id for ever where it had not come in yet."""
    control = listen(lambda *_: None)
    with pytest.raises(PeerFault, match="the connection broke$"):
        Control(home, Config()).change_once("respond-0123456789", "resume")
    assert [method for method, _, _ in control.asked] == ["POST"]


def test_a_refusal_has_its_status(home: Home, listen: Listen) -> None:
    listen(lambda *_: (412, {"error": "`agent:a` is revoked already, as epoch 2"}))
    with pytest.raises(Refused) as caught:
        Control(home, Config()).change_once("respond-0123456789", "revoke")
    assert caught.value.status == controlclient.ALREADY


def test_a_question_carries_its_parameters_and_the_time_that_it_may_wait(home: Home, listen: Listen) -> None:
    control = listen(lambda *_: (200, {"hosts": []}))
    Control(home, Config()).ask("/acks", epoch=3, wait_s=1.5)
    assert control.asked == [("GET", "/acks?epoch=3&wait_s=1.500", None)]


def test_what_control_refuses_is_said_in_its_own_words(home: Home, listen: Listen) -> None:
    listen(lambda *_: (409, {"error": "agent `a` is there already"}))
    with pytest.raises(OperatorFault, match="^agent `a` is there already$"):
        Control(home, Config()).change("agent-add", name="a")


def test_a_control_that_is_at_a_loss_may_do_better_later(home: Home, listen: Listen) -> None:
    listen(lambda *_: (503, {"error": "the disk is full"}))
    with pytest.raises(PeerFault, match="the disk is full$"):
        Control(home, Config()).ask("/status")


def test_nothing_is_made_where_control_is_not_up(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.run.mkdir()
    with pytest.raises(PeerFault, match="is not up: no such file or directory$"):
        Control(home, Config()).change("resume")
    assert main(["resume", "--home", str(home.root)]) == 2
    assert capsys.readouterr().err.startswith(f"wardline: control of `{home.root}` is not up")


def test_a_socket_whose_path_is_longer_than_an_address_is_reached(tmp_path: Path) -> None:
    deep = Home(tmp_path / ("d" * 100) / ("e" * 100))
    near = Home(tmp_path)
    control = Listener(near, lambda *_: (200, {}))
    deep.run.mkdir(parents=True)
    near.control_socket.rename(deep.control_socket)
    assert len(str(deep.control_socket)) > 200
    assert Control(deep, Config()).ask("/status") == {}
    control.shutdown()
    control.server_close()


def test_a_change_that_was_made_when_the_connection_broke_is_found(home: Home, listen: Listen) -> None:
    made: dict[str, Any] = {}

    def answer(method: str, path: str, body: Any) -> Answer:
        if method == "POST":
            made[body["id"]] = MADE
            return None
        return 200, made[path.removeprefix("/changes/")]

    listen(answer)
    assert Control(home, Config()).change("resume").epoch == 7


def test_a_change_of_which_control_knows_nothing_was_not_made(home: Home, listen: Listen) -> None:
    listen(lambda method, *_: None if method == "POST" else (404, {"error": "no such change"}))
    with pytest.raises(Unsettled, match="the connection broke; the change was not made$"):
        Control(home, Config()).change("resume")


def test_control_is_asked_until_it_answers(home: Home, listen: Listen) -> None:
    control = listen(lambda *_: None if len(control.asked) < 4 else (200, MADE))
    assert Control(home, Config()).change("resume").epoch == 7
    assert [method for method, _, _ in control.asked] == ["POST", "GET", "GET", "GET"]


def test_a_control_that_does_not_come_back_leaves_a_change_unknown(
    home: Home, listen: Listen, capsys: pytest.CaptureFixture[str]
) -> None:
    listen(lambda *_: None)
    assert main(["resume", "--home", str(home.root)]) == 1
    said = capsys.readouterr()
    assert "whether the change was made is unknown" in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_no_credential_is_shown_for_an_agent_that_may_not_be_there(
    home: Home, listen: Listen, capsys: pytest.CaptureFixture[str]
) -> None:
    listen(lambda *_: None)
    assert main(["agent", "add", "a", "--owner", "o", "--home", str(home.root)]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("url", ["http://here:1", "https://", "https://user:planted@here:1", "https://here:x", "https://here:1/p"])
def test_an_address_of_control_that_is_none_is_refused(home: Home, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    home.config.write_text(f'[control]\nurl = "{url}"\n')
    assert main(["resume", "--home", str(home.root)]) == 2
    said = capsys.readouterr().err
    assert "control.url: " in said
    assert "planted" not in said


def test_no_change_goes_out_without_a_certificate(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.config.write_text('[control]\nurl = "https://here:1"\nclient_certificate_file = "/desk.pem"\n')
    assert main(["resume", "--home", str(home.root)]) == 2
    assert capsys.readouterr().err == (
        "wardline: control.client_key_file: is not set, but control.url is `https://here:1`: control asks who calls\n"
    )
