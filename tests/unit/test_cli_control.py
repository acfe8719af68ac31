"""The commands of control, by themselves: times, selectors, credentials, enrolment files, and what is printed of who obeys."""

import argparse
import base64
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.cli import agent, applied, enrol, revoke
from pipeline.cli.common import open_home, table
from pipeline.cli.main import build_parser
from pipeline.core import requests
from pipeline.shells.controlclient import Change, Unsettled
from schemas.config import Config, Kafka, load_config
from schemas.control import key_id_of
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.keys import parse_private, pinned, query_key, raw_public
from schemas.process import write_run_file

Capture = pytest.CaptureFixture[str]

# -- words ---------------------------------------------------------------------------------------------------------------


SPANS = {"2s": 2, "90s": 90, "30m": 1800, "1h": 3600, "1h30m": 5400, "7d": 604800}


def test_a_time_span_is_numbers_with_units() -> None:
    assert {text: revoke.span(text) for text in SPANS} == SPANS


@pytest.mark.parametrize("text", ["", "0s", "1", "h", "-1h", "1.5h", "1h ", "11y", "9999999w", "²s"])
def test_a_time_span_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time such as 90s"):
        revoke.span(text)


def test_a_moment_without_a_zone_is_utc() -> None:
    assert revoke.moment("2026-01-31T12:00:00Z") == revoke.moment("2026-01-31T12:00:00") == 1769860800
    assert revoke.moment("2026-01-31T12:00:00+02:00") == 1769860800 - 7200
    for text in ("yesterday", "1960-01-01", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            revoke.moment(text)


@pytest.mark.parametrize("text", ["0", "-1", "601", "x", "nan", "inf", ""])
def test_a_timeout_has_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of seconds"):
        applied.timeout(text)


def test_a_token_is_hashed_before_it_goes_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"planted").hexdigest()
    parser = build_parser()
    for name in ("planted", digest.upper()):
        assert revoke._selector(parser.parse_args(["revoke", "token", name, "--reason", "r"])).name == digest
    monkeypatch.setattr("sys.stdin", io.StringIO("planted\n"))
    assert revoke._selector(parser.parse_args(["unrevoke", "token", "-"])).name == digest
    with pytest.raises(OperatorFault, match="no token came from stdin"):
        revoke._selector(parser.parse_args(["unrevoke", "token", "-"]))


def test_a_table_does_not_let_a_text_write_to_the_terminal() -> None:
    assert table(("A", "B"), [("x\x1b[2J", "y")]) == "A         B\nx\\x1b[2J  y"


# -- credentials ---------------------------------------------------------------------------------------------------------


def test_a_credential_has_256_bits_in_characters_that_need_no_quotes() -> None:
    made = {agent.make_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", secret) for secret in made)


def test_what_is_kept_of_a_credential_proves_it_and_is_what_control_takes() -> None:
    kept = agent.scrypt_of("secret", b"s" * agent.SALT_BYTES)
    kind, n, r, p, salt, digest = kept.split("$")
    made = hashlib.scrypt(b"secret", salt=base64.b64decode(salt), n=int(n), r=int(r), p=int(p), dklen=32)
    assert (kind, base64.b64decode(digest)) == ("scrypt", made)
    assert requests.secret({"secret": kept}) == kept
    assert agent.scrypt_of("secret", b"t" * agent.SALT_BYTES) != kept


# -- who obeys -----------------------------------------------------------------------------------------------------------

DIGEST = "d" * 64


def host(name: str, *doors: tuple[str, int, int], epoch: int = 5, state: str = "ready", **others: Any) -> dict[str, Any]:
    said = {"host": name, "boot": "0" * 16, "state": state, "why": "", "seen_s": 0.1, "epoch": epoch, "policy_digest": DIGEST,
            "lag_records": 0, "expected": True, "applied_ns": 2_000_000, "policy_since_ns": 1}  # fmt: skip
    said["doors"] = [
        {"boot": boot, "epoch": at, "policy_digest": DIGEST, "applied_ns": applied_ns, "policy_since_ns": 1}
        for boot, at, applied_ns in doors
    ]
    return said | others


class Hosts:
    """A control that answers two questions."""

    def __init__(self, *hosts: dict[str, Any]) -> None:
        self.hosts = list(hosts)

    def ask(self, path: str, **_: Any) -> dict[str, Any]:
        assert path == "/acks"
        return {"hosts": self.hosts}

    def audit(self, after: int, limit: int) -> list[dict[str, Any]]:
        assert (after, limit) == (4, 1)
        return [{"epoch": 5, "time_ns": 1_000_000}]


def told(
    capsys: Capture, control: Hosts, *, as_json: bool = False, digest: str = "", home: str = "/nowhere"
) -> tuple[int, str, str]:
    args = argparse.Namespace(json=as_json, timeout=0.2, home=home)
    change = Change(epoch=5, result={})
    code = applied.report(control, Config(), args, change, "revoked", digest=digest)  # type: ignore[arg-type]
    said = capsys.readouterr()
    return code, said.out, said.err


def test_each_door_is_shown_with_its_time_and_a_host_without_one_answers_for_itself(capsys: Capture) -> None:
    control = Hosts(host("enforce-1", ("a" * 16, 5, 13_400_000), ("b" * 16, 6, 900_000)), host("enforce-2"))
    code, out, err = told(capsys, control)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "revoked as epoch 5",
        f"  enforce-1 door {'a' * 16}  12 ms",
        f"  enforce-1 door {'b' * 16}  0 ms",
        f"  enforce-2{' ' * 22}  1 ms",
    ]


def test_a_door_that_runs_under_this_home_is_called_by_its_name(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    write_run_file(tmp_path / "run" / "door-2.json", {"name": "door-2", "pid": os.getpid(), "boot": "b" * 16})
    control = Hosts(host("enforce-1", ("a" * 16, 5, 13_400_000), ("b" * 16, 5, 900_000)))
    _, out, _ = told(capsys, control, home=str(tmp_path))
    assert [line.split("  ")[1] for line in out.splitlines()[1:]] == [f"enforce-1 door {'a' * 16}", "enforce-1 door-2"]
    _, out, _ = told(capsys, control, home=str(tmp_path), as_json=True)
    assert [(door["door"], door["name"]) for door in json.loads(out)["doors"]] == [
        ("a" * 16, f"enforce-1 door {'a' * 16}"), ("b" * 16, "enforce-1 door-2"),
    ]  # fmt: skip


def test_a_change_that_is_in_force_is_called_that_though_control_has_gone(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Hosts):
        def audit(self, after: int, limit: int) -> list[dict[str, Any]]:
            raise PeerFault("control is not up")

    monkeypatch.setattr(applied, "SETTLE_S", 0.3)
    with pytest.raises(Unsettled, match="^control is not up; epoch 5 is in force, who obeys it already is unknown$"):
        told(capsys, Gone())


def test_control_is_asked_again_while_it_is_started_again(capsys: Capture) -> None:
    class Again(Hosts):
        asked = 0

        def audit(self, after: int, limit: int) -> list[dict[str, Any]]:
            self.asked += 1
            if self.asked < 3:
                raise PeerFault("control is not up")
            return super().audit(after, limit)

    control = Again(host("enforce-1"))
    assert told(capsys, control)[0] == 0
    assert control.asked == 3


def test_a_door_that_is_late_is_named_and_the_exit_code_is_1(capsys: Capture) -> None:
    stale = host("edge", epoch=3, state="stale", why="no heartbeat")
    control = Hosts(host("enforce-1", ("a" * 16, 5, 0), ("b" * 16, 4, 0)), stale)
    code, out, err = told(capsys, control)
    assert code == 1
    assert f"  enforce-1 door {'b' * 16}  NOT ACKNOWLEDGED, at epoch 4\n" in out
    assert "NOT ACKNOWLEDGED, at epoch 3: no heartbeat\n" in out
    assert err == f"wardline: not acknowledged within 0.2 s: enforce-1 door {'b' * 16}, edge\n"


def test_a_host_that_nobody_expects_is_not_waited_for(capsys: Capture) -> None:
    code, out, _ = told(capsys, Hosts(host("gone", epoch=1, expected=False)))
    assert code == 0
    assert out.splitlines()[1:] == ["  no enforcer runs: one that starts obeys before its first call"]


def test_policies_are_applied_when_the_door_decides_by_them(capsys: Capture) -> None:
    assert told(capsys, Hosts(host("enforce-1", ("a" * 16, 5, 0))), digest=DIGEST)[0] == 0
    code, out, _ = told(capsys, Hosts(host("enforce-1", ("a" * 16, 5, 0))), digest="e" * 64)
    assert code == 1
    assert "NOT ACKNOWLEDGED, decides by dddddddddddd" in out


def test_a_program_gets_each_door_as_json(capsys: Capture) -> None:
    code, out, _ = told(capsys, Hosts(host("enforce-1", ("a" * 16, 5, 3_500_000), ("b" * 16, 4, 0))), as_json=True)
    said = json.loads(out)
    assert (code, said["epoch"], said["acknowledged"]) == (1, 5, False)
    shown = [(door["door"][0], door["acknowledged"], door["ms"]) for door in said["doors"]]
    assert shown == [("a", True, 2.5), ("b", False, None)]


# -- enrolment -----------------------------------------------------------------------------------------------------------

KAFKA = Kafka(servers="broker.example:9092", prefix="site.", partitions=8, sasl_password_file="/etc/wardline/kafka.password")
CONTROL = raw_public(Ed25519PrivateKey.from_private_bytes(b"c" * 32).public_key())
KEY_ID = key_id_of(CONTROL).hex()


def write(
    path: Path, *, role: str = "enforcer", name: str = "edge-7", key: bytes = b"k" * 32, control: bytes = CONTROL,
    query: bytes = b"q" * 32,
) -> Path:  # fmt: skip
    made = enrol.Enrolment(role=role, name=name, key=Ed25519PrivateKey.from_private_bytes(key),
                           control={key_id_of(control).hex(): control}, kafka=KAFKA,
                           query=query if role == "enforcer" else b"")  # fmt: skip
    path.touch(0o600)
    path.write_bytes(made.encode())
    return path


def test_an_enrolment_makes_a_home_that_knows_its_key_its_control_and_its_broker(tmp_path: Path) -> None:
    home, file = Home(tmp_path / "home"), write(tmp_path / "edge-7.enrol")
    home.root.mkdir()
    for _ in range(2):  # a later start finds everything in place
        assert enrol.install(home, file, "enforcer", None) == "edge-7"
        path = home.private_key("hosts", "edge-7")
        assert parse_private(path.read_bytes(), path).private_bytes_raw() == b"k" * 32
        assert path.stat().st_mode & 0o777 == 0o600
        assert pinned(home.trusted("control")) == {KEY_ID: CONTROL}
        assert load_config(home.config).kafka == KAFKA


def test_an_enforcer_elsewhere_hashes_queries_as_those_here_do(tmp_path: Path) -> None:
    """A home makes a key for itself when it is opened, before the enrolment is read: that one gives way."""
    home, file = Home(tmp_path / "home"), write(tmp_path / "edge-7.enrol")
    open_home(home)
    assert query_key(home) != b"q" * 32
    for _ in range(2):
        enrol.install(home, file, "enforcer", None)
        open_home(home)
        assert query_key(home) == b"q" * 32
        assert home.query_key.stat().st_mode & 0o777 == 0o600


def test_a_worker_elsewhere_is_not_told_what_queries_are_hashed_with(tmp_path: Path) -> None:
    file = write(tmp_path / "f", role="worker", name="loader")
    assert json.loads(file.read_text())["query"] == ""
    home = Home(tmp_path / "home")
    home.root.mkdir()
    enrol.install(home, file, "worker", None)
    assert not home.query_key.exists()


def test_an_enrolment_adds_its_broker_to_a_configuration_that_names_none(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.config.write_text('[clickhouse]\nurl = "http://here:8123"')
    assert enrol.install(home, write(tmp_path / "f", role="worker", name="loader"), "worker", None) == "loader"
    config = load_config(home.config)
    assert (config.clickhouse.url, config.kafka) == ("http://here:8123", KAFKA)


def test_an_enrolment_is_for_one_role(tmp_path: Path) -> None:
    file = write(tmp_path / "f", role="worker")
    with pytest.raises(OperatorFault, match=r"f: enrols a worker: run `wardline work --enrol` with it$"):
        enrol.install(Home(tmp_path), file, "enforcer", None)


def test_an_enrolment_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "f")
    file.chmod(0o640)
    with pytest.raises(OperatorFault, match=r"f: mode is 0640, must be 0600$"):
        enrol.install(Home(tmp_path), file, "enforcer", None)


def test_another_key_another_control_and_another_topic_are_refused_by_file(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    enrol.install(home, write(tmp_path / "first"), "enforcer", None)
    with pytest.raises(OperatorFault, match=r"hosts/edge-7\.key: is another key than that of .*/second"):
        enrol.install(home, write(tmp_path / "second", key=b"x" * 32), "enforcer", None)
    other = raw_public(Ed25519PrivateKey.generate().public_key())
    with pytest.raises(OperatorFault, match=r"third: is of another control than the one that .*/trust/control pins$"):
        enrol.install(home, write(tmp_path / "third", name="edge-8", control=other), "enforcer", None)
    home.config.write_text('[kafka]\nprefix = "site."\npartitions = 9\n')
    with pytest.raises(OperatorFault, match=r"wardline\.toml: kafka\.partitions: `9` is not that of the enrolment, `8`$"):
        enrol.install(home, tmp_path / "first", "enforcer", None)
    home.config.write_text('[kafka]\nprefix = "site."\npartitions = 8\n')
    with pytest.raises(OperatorFault, match=r"\.toml: kafka\.servers: is empty, the enrolment says `broker\.example:9092`"):
        enrol.install(home, tmp_path / "first", "enforcer", None)
    assert enrol.install(home, tmp_path / "first", "enforcer", "near:9092") == "edge-7"


SPOILED: dict[str, Any] = {
    "another form": {"form": "wardline-enrolment-2"},
    "no control key": {"control": {}},
    "a control key under another name": {"control": {"00" * 8: "x"}},
    "a broker that is no text": {"kafka": {"servers": 1}},
    "a setting that is none": {"kafka": {"server": "x"}},
    "no name": {"name": None},
    "half a key for queries": {"query": "71" * 31},
    "no key for queries": {"query": ""},
    "a key for queries that is no text": {"query": 7},
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_a_file_that_is_no_enrolment_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    file = write(tmp_path / "f")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(OperatorFault, match="f: is no enrolment file of this version$"):
        enrol.install(Home(tmp_path), file, "enforcer", None)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("text", ["", "no json", "[]", "x" * (enrol.FILE_BYTES_MAX + 1)])
def test_a_file_of_anything_is_no_enrolment(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "f")
    file.write_text(text)
    with pytest.raises(OperatorFault, match="f: is no enrolment file of this version$"):
        enrol.read(file, "enforcer")


@pytest.mark.parametrize(("role", "name"), [
    ("enforcer", "../x"), ("enforcer", ""), ("enforcer", "a" * 65), ("enforcer", "control"), ("enforcer", "work-1"),
    ("worker", "enforce-1"), ("worker", "door-1"), ("worker", ".x"),
])  # fmt: skip
def test_a_name_is_that_of_a_file_and_of_nobody_else(role: str, name: str) -> None:
    with pytest.raises(OperatorFault, match=r"is no name of a host|is the name of a process that is no"):
        enrol.check_name(name, role)
    assert enrol.check_name("enforce-7", "enforcer") == "enforce-7"
    assert enrol.check_name("edge.Paris_2", "enforcer") == "edge.Paris_2"
