"""Control's API: who may ask, what is answered, and that no secret goes further than it must."""

import asyncio
import http.client
import json
import os
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.ack import Ack, DoorAck
from tests.support.certificates import Authority
from tests.support.controlling import NOT_ROOT, Controlled
from tests.support.home import wait_until

SECRET = f"scrypt$16384$8$1${'A' * 24}${'B' * 44}"
NOBODY = 65534


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    with Controlled(tmp_path_factory.mktemp("api") / "home") as home:
        yield home.start_all()


def as_user(uid: int, job: Callable[[], str]) -> str:
    """What `job` returns when another user runs it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writing, job().encode())
        except BaseException as fault:
            os.write(writing, repr(fault).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def knock(folder: int) -> Callable[[], str]:
    def job() -> str:
        os.fchdir(folder)
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect("control.sock")
            link.sendall(b"GET /live HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n")
            data = b""
            while more := link.recv(65536):
                data += more
        return data.decode()

    return job


@pytest.mark.skipif(os.geteuid() != 0, reason=NOT_ROOT)
def test_another_user_cannot_even_connect(control: Controlled) -> None:
    folder = os.open(control.home.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert "PermissionError" in as_user(NOBODY, knock(folder))
        assert control.home.control_socket.stat().st_mode & 0o777 == 0o600
    finally:
        os.close(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason=NOT_ROOT)
def test_another_user_is_refused_by_who_it_is_where_the_file_lets_it_in(control: Controlled) -> None:
    control.client.change("revoke", kind="agent", name="only-for-us", reason="leak")
    folder = os.open(control.home.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        control.home.run.chmod(0o777)
        control.home.control_socket.chmod(0o666)
        said = as_user(NOBODY, knock(folder))
    finally:
        control.home.run.chmod(0o700)
        control.home.control_socket.chmod(0o600)
        os.close(folder)
    assert said.startswith("HTTP/1.1 403"), said
    assert f"user id {NOBODY} is not the user of this control" in said
    assert "only-for-us" not in said
    assert f"a request is refused: user id {NOBODY}" in control.said()
    assert control.client.get("/live")["live"] >= 1


# -- what is answered --------------------------------------------------------------------------------------------------


def test_who_changed_what_stands_in_the_journal(control: Controlled) -> None:
    made = control.client.change("revoke", kind="session", name="audited", reason="leak")
    entries = control.client.get(f"/audit?after={made['epoch'] - 1}&limit=1")["entries"]
    assert [(one["key"], one["actor"], one["value"]["reason"]) for one in entries] == [
        ("revocation/session:audited", entries[0]["actor"], "leak")
    ]  # fmt: skip
    assert entries[0]["actor"].startswith("uid:")
    assert abs(entries[0]["time_ns"] / 1e9 - time.time()) < 60
    lifted = control.client.change("unrevoke", kind="session", name="audited")
    history = control.client.get("/audit?key=revocation/session:audited")["entries"]
    assert [(one["epoch"], one["value"] is None) for one in history] == [(made["epoch"], False), (lifted["epoch"], True)]


def test_the_same_id_is_answered_the_same_and_never_made_twice(control: Controlled) -> None:
    request_id = str(uuid.uuid4())
    first = control.client.change("revoke", request_id=request_id, kind="agent", name="once", reason="leak")
    again = control.client.change("revoke", request_id=request_id, kind="agent", name="once", reason="leak")
    assert first == again == control.client.get(f"/changes/{request_id}")
    status, said = control.client.ask(
        "POST", "/changes", {"id": request_id, "do": "revoke", "kind": "agent", "name": "once", "reason": "other"}
    )
    assert status == 409
    assert "asked for something else" in said["error"]


def test_a_revocation_that_may_only_be_new_leaves_what_stands_and_is_still_answered_by_its_id(control: Controlled) -> None:
    first = {"id": str(uuid.uuid4()), "do": "revoke", "kind": "agent", "name": "held", "reason": "a rule", "only_new": True}
    made = control.client.ask("POST", "/changes", first)
    assert made[0] == 200
    assert control.client.ask("POST", "/changes", first) == made, "asked again, it is the one that stands"
    status, said = control.client.ask("POST", "/changes", first | {"id": str(uuid.uuid4()), "reason": "another"})
    assert (status, said["error"]) == (412, f"`agent:held` is revoked already, as epoch {made[1]['epoch']}")


def test_an_exception_ends_by_itself(control: Controlled) -> None:
    fields = {"finding": "0" * 32, "detector": "leak", "subject": "agent=x", "owner": "ops"}
    control.client.change("exception-add", **fields, for_s=1)
    (entry,) = control.client.get("/live?kind=exception")["entries"]
    assert entry["value"] == {**fields, "reason": "", "expires": entry["value"]["expires"]}
    wait_until(lambda: control.client.get("/live?kind=exception")["entries"] == [], 10, "its time has come")


def test_what_is_live_comes_in_pages(control: Controlled) -> None:
    items = [{"kind": "session", "name": f"page-{n}", "reason": "r"} for n in range(25)]
    control.client.change("revoke-many", items=items)
    names, after = [], 0
    while True:
        page = control.client.get(f"/live?kind=revocation&after={after}&limit=10")
        names += [one["value"]["name"] for one in page["entries"]]
        if not page["more"]:
            break
        assert len(page["entries"]) == 10
        after = page["entries"][-1]["epoch"]
    assert [name for name in names if name.startswith("page-")] == [f"page-{n}" for n in range(25)]
    assert len(names) == len(set(names))


BAD: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/changes", {"do": "resume"}, 400, "`id` is not 16 to 64"),
    ("POST", "/changes", {"id": "short", "do": "resume"}, 400, "`id` is not 16 to 64"),
    ("POST", "/changes", {"id": "x" * 16, "do": "policy"}, 400, "is what control does by itself"),
    ("POST", "/changes", {"id": "x" * 16, "do": "forget", "keys": ["agent/x"]}, 400, "is what control does by itself"),
    ("POST", "/changes", {"id": "x" * 16, "do": "nonsense"}, 400, "`nonsense` is no request"),
    ("POST", "/changes", {"id": "x" * 16, "do": "key-rotate", "public": "00"}, 400, "has no fields"),
    ("POST", "/changes", [], 400, "is not an object"),
    ("POST", "/changes", "x" * (33 << 20), 413, "too large"),
    ("GET", "/changes/none", None, 404, "was not made"),
    ("GET", "/live?limit=0x10", None, 400, "limit: `0x10` is not a whole number"),
    ("GET", "/live?limit=10001", None, 400, "is not a whole number from 0 to 10000"),
    ("GET", "/acks?wait_s=nan", None, 400, "wait_s: `nan` is not a number of seconds"),
    ("GET", "/acks?wait_s=601", None, 400, "0 to 600"),
    ("GET", "/nowhere", None, 404, "not found"),
    ("DELETE", "/live", None, 405, "not allowed"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "message"), BAD)
def test_what_is_wrong_is_said_in_one_line(
    control: Controlled, method: str, path: str, body: Any, status: int, message: str
) -> None:
    found, said = control.client.ask(method, path, body)
    assert found == status
    assert message in said["error"]
    assert "\n" not in said["error"]


def test_no_secret_is_logged_or_handed_out(control: Controlled) -> None:
    token = "tok_verysecret_0123456789abcdef"
    control.client.change("agent-add", name="keeper", owner="o", secret=SECRET)
    control.client.change("agent-rotate", name="keeper", secret=SECRET.replace("B", "C"))
    control.client.change("revoke", kind="token", name=token, reason="leak")
    assert "`secret` is not" in control.client.refused("agent-add", name="other", owner="o", secret=token)
    control.client.refused("agent-add", name="keeper", owner="o", secret=SECRET)
    answers = "".join(
        json.dumps(control.client.get(path)) for path in ("/live", "/audit", "/status", "/policy", "/acks")
    )
    log = (control.home.log / "control.log").read_text()
    run_files = "".join(path.read_text() for path in control.home.run.glob("*.json"))
    pem = "".join(path.read_text() for path in control.home.private_key("control", "x").parent.glob("*.key"))
    for said in (answers, log, run_files):
        for secret in (token, "A" * 24, "B" * 44, "C" * 44, *pem.splitlines()[1:-1]):
            assert secret not in said
    assert "agent/keeper" in answers
    written = (control.home.control / "journal.sqlite").read_bytes() + b"".join(one.value or b"" for one in control.read())
    assert token.encode() not in written
    command = Path(f"/proc/{control.pids()['control']}/cmdline").read_bytes()
    assert b"scrypt" not in command


# -- acknowledgements --------------------------------------------------------------------------------------------------


def ack(host: str, epoch: int, *doors: int, state: str = "ready", why: str = "", said_ns: int = 0) -> Ack:
    now = time.time_ns()
    return Ack(
        host=host, boot="00" * 8, state=state, why=why, epoch=epoch, counter=1, policy_digest="", applied_ns=now,
        said_ns=said_ns or now, lag_records=0,
        doors=tuple(DoorAck(boot=f"{n:016x}", epoch=one, policy_digest="", applied_ns=now) for n, one in enumerate(doors)),
    )  # fmt: skip


def say(control: Controlled, *said: tuple[Ed25519PrivateKey, Ack]) -> None:
    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=control.servers())
        await producer.start()
        for key, one in said:
            await producer.send_and_wait("wardline.acks", one.encode(key.sign), key=one.host.encode(), partition=0)
        await producer.stop()

    asyncio.run(send())


def host_of(answer: Any, name: str) -> Any:
    return next(one for one in answer["hosts"] if one["host"] == name)


def test_only_the_registered_key_of_a_host_acknowledges(control: Controlled) -> None:
    key, forger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    control.client.change("enforcer-add", name="h-1", key=key.public_key().public_bytes_raw().hex())
    epoch = control.client.change("revoke", kind="agent", name="h-1", reason="leak")["epoch"]
    assert host_of(control.client.get(f"/acks?epoch={epoch}"), "h-1")["expected"] is False
    say(control, (forger, ack("h-1", epoch)), (key, ack("nobody", epoch)), (key, ack("h-1", epoch - 1)))
    wait_until(lambda: host_of(control.client.get("/acks"), "h-1").get("epoch"), 10, "the acknowledgement is heard")
    found = control.client.get(f"/acks?epoch={epoch}&wait_s=0.3")
    assert host_of(found, "h-1")["applied"] is False
    assert host_of(found, "h-1")["expected"] is True
    assert [one["host"] for one in found["hosts"] if one["host"] == "nobody"] == []
    control.client.change("enforcer-remove", name="h-1")


def test_a_host_has_applied_what_all_its_doors_have(control: Controlled) -> None:
    key = Ed25519PrivateKey.generate()
    control.client.change("enforcer-add", name="h-2", key=key.public_key().public_bytes_raw().hex())
    epoch = control.client.change("pause", reason="fire")["epoch"]
    control.client.change("resume")
    say(control, (key, ack("h-2", epoch, epoch, epoch - 1)))
    wait_until(lambda: host_of(control.client.get("/acks"), "h-2").get("epoch"), 10, "the acknowledgement is heard")
    begun = time.monotonic()
    late = host_of(control.client.get(f"/acks?epoch={epoch}&wait_s=1"), "h-2")
    assert time.monotonic() - begun > 0.9, "it is waited for"
    assert late["applied"] is False
    assert [door["applied"] for door in late["doors"]] == [True, False]
    say(control, (key, ack("h-2", epoch, epoch, epoch)))
    begun = time.monotonic()
    found = host_of(control.client.get(f"/acks?epoch={epoch}&wait_s=20"), "h-2")
    assert time.monotonic() - begun < 10
    assert found["applied"] is True
    say(control, (key, ack("h-2", epoch, state="stopped")))
    wait_until(lambda: not host_of(control.client.get("/acks"), "h-2")["expected"], 10, "a stopped host is not expected")
    control.client.change("enforcer-remove", name="h-2")


def test_an_old_acknowledgement_does_not_replace_a_newer_one(control: Controlled) -> None:
    key = Ed25519PrivateKey.generate()
    control.client.change("enforcer-add", name="h-3", key=key.public_key().public_bytes_raw().hex())
    say(control, (key, ack("h-3", 9)), (key, ack("h-3", 7, said_ns=5)))
    wait_until(lambda: host_of(control.client.get("/acks"), "h-3").get("epoch") == 9, 10, "the acknowledgement is heard")
    time.sleep(0.3)
    assert host_of(control.client.get("/acks"), "h-3")["epoch"] == 9
    control.client.change("enforcer-remove", name="h-3")


# -- TCP ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Controlled, Authority, Authority]]:
    folder = tmp_path_factory.mktemp("tls")
    ours, other = Authority(folder / "ours"), Authority(folder / "other")
    certificate, key = ours.issue("control")
    config = (
        f'[control]\nlisten = "127.0.0.1:0"\ntls_certificate_file = "{certificate}"\ntls_key_file = "{key}"\n'
        f'tls_client_ca_file = "{ours.file}"\n'
    )
    with Controlled(folder / "home", config=config) as home:
        yield home.start_all(), ours, other


def over(home: Controlled, trusted: Path, pair: tuple[Path, Path] | None) -> tuple[int, Any]:
    context = ssl.create_default_context(cafile=str(trusted))
    if pair is not None:
        context.load_cert_chain(*pair)
    said = json.loads(home.home.run_file("control").read_text())
    host, _, port = said["address"].rpartition(":")
    link = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    try:
        body = json.dumps({"id": str(uuid.uuid4()), "do": "revoke", "kind": "agent", "name": "tls", "reason": "leak"})
        link.request("POST", "/changes", body)
        answer = link.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        link.close()


def test_over_tcp_a_client_certificate_of_our_authority_is_who_asks(over_tls: tuple[Controlled, Authority, Authority]) -> None:
    home, ours, _ = over_tls
    status, made = over(home, ours.file, ours.issue("operations"))
    assert status == 200
    assert home.client.get(f"/audit?after={made['epoch'] - 1}")["entries"][0]["actor"] == "cn:operations"


def test_over_tcp_nobody_else_is_served(over_tls: tuple[Controlled, Authority, Authority]) -> None:
    home, ours, other = over_tls
    before = home.client.get("/status")["epoch"]
    for pair in (None, other.issue("stranger")):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            over(home, ours.file, pair)
    host, _, port = json.loads(home.home.run_file("control").read_text())["address"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(1000)
    assert home.client.get("/status")["epoch"] == before


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('listen = "127.0.0.1:0"', "control.tls_certificate_file: is not set, but control.listen is `127.0.0.1:0`"),
        ('listen = "nowhere"\n{files}', "control.listen: `nowhere` is not HOST:PORT"),
        ('listen = "127.0.0.1:0"\n{files}\n# loose', "mode is 0644, must be 0600"),
    ],
)
def test_tcp_without_what_makes_it_safe_does_not_start(tmp_path: Path, lines: str, message: str) -> None:
    ours = Authority(tmp_path / "ours")
    certificate, key = ours.issue("control")
    if "loose" in lines:
        key.chmod(0o644)
    files = f'tls_certificate_file = "{certificate}"\ntls_key_file = "{key}"\ntls_client_ca_file = "{ours.file}"'
    with Controlled(tmp_path / "home", config=f"[control]\n{lines.format(files=files)}\n") as home:
        home.start("broker")
        process = home.start(wait=False)
        assert process.wait(60) == 2
        assert message in home.said()
        assert "Traceback" not in home.said()
