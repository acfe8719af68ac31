"""The command line and its egress doors: their ports, their time to stop, and their place in `status`."""

import argparse
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import status, up
from pipeline.cli.main import main
from pipeline.cli.processes import egress_port
from pipeline.cli.supervise import Child
from schemas.config import Config, Egress
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import write_run_file


@pytest.fixture(autouse=True)
def no_home_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the home of whoever runs it."""
    monkeypatch.delenv("WARDLINE_HOME", raising=False)
    monkeypatch.delenv("WARDLINE_PARENT", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def say(home: Home, name: str, **others: Any) -> None:
    home.run.mkdir(parents=True, exist_ok=True)
    said = {"name": name, "pid": os.getpid(), "state": "ready", "address": "a:1", **others}
    write_run_file(home.run_file(name), said)


def arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"enforcers": 1, "workers": 1, "doors": None, "port_base": 0, **given})


def word(child: Child, option: str) -> str:
    return child.command[child.command.index(option) + 1]


def test_the_doors_of_each_enforcer_have_a_port_of_their_own(tmp_path: Path) -> None:
    planned = up.plan(Home(tmp_path), Config(), arguments(enforcers=3, port_base=5000))
    enforcers = [child for child in planned if child.stage == 3]
    assert [word(child, "--egress-port") for child in enforcers] == ["17480", "17481", "17482"]
    assert all("--doors" not in child.command for child in enforcers), "the configuration says how many"
    free = up.plan(Home(tmp_path), Config(), arguments(enforcers=2, port_base=0, doors=4))
    assert [(word(c, "--egress-port"), word(c, "--doors")) for c in free if c.stage == 3] == [("0", "4"), ("0", "4")]


def test_the_port_of_a_host_follows_its_number_and_that_of_a_named_one_is_the_configured(tmp_path: Path) -> None:
    assert egress_port(Config(), "enforce-1") == 17480
    assert egress_port(Config(egress=Egress(port=0)), "enforce-7") == 0
    assert egress_port(Config(egress=Egress(port=9000)), "edge-7") == 9000
    with pytest.raises(OperatorFault, match=r"^egress\.port: 65535 leaves no port for enforce-2, highest port is 65535$"):
        egress_port(Config(egress=Egress(port=65535)), "enforce-2")


def test_a_host_has_time_for_its_doors_when_it_stops(tmp_path: Path) -> None:
    config = Config(egress=Egress(stop_ms=60_000))
    assert next(c for c in up.plan(Home(tmp_path), config, arguments()) if c.stage == 3).stop_s >= 60 + 2 + 30


def are_free(base: int, count: int) -> bool:
    """Whether nobody has one of these ports. Below 32,768 none is given out to whoever asks for any."""
    try:
        for port in range(base, base + count):
            with socket.socket() as free:
                free.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_a_port_of_doors_that_is_in_use_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as the doors of another home do
        other.bind(("127.0.0.1", 0))
        ports = other.getsockname()[1], next(base for base in range(20_000, 30_000, 16) if are_free(base, 16))
        (tmp_path / "wardline.toml").write_text(f"[egress]\nport = {ports[0]}\n")
        mask = os.umask(0o077)
        try:
            assert main(["up", "--home", str(tmp_path), "--port-base", str(ports[1])]) == 2
        finally:
            os.umask(mask)
    assert capsys.readouterr().err == (
        f"wardline: port {ports[0]} of enforce-1: address already in use; choose another egress.port, or --port-base 0 for free"
        " ports\n"
    )


DOOR: dict[str, Any] = {"host": "enforce-1", "boot": "b", "socket": "/s", "calls": 1200, "tunnels": 3, "epoch": 9}


def test_status_names_each_door_with_its_proxy_and_what_it_has_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name in ("broker", "store", "control", "work-1"):
        say(home, name)
    doors = [{"name": f"door-{n}", "pid": n, "state": "starting", "why": ""} for n in (1, 2)]
    say(home, "enforce-1", doors=doors, policy_digest="d")
    say(home, "door-1", **DOOR, policy_digest="that of a moment ago")
    found = status.collect(home, Config())
    assert [p["name"] for p in found.processes] == ["broker", "store", "control", "work-1", "enforce-1", "door-1", "door-2"]
    assert found.processes[-2] == {
        "name": "door-1", "pid": os.getpid(), "state": "ready", "address": "a:1", "metrics": "", **DOOR,
    }  # fmt: skip
    assert (found.processes[-1]["state"], found.ready) == ("down", False)
    assert found.policy_digest == "d"
    assert re.search(r"^  door-1 +ready +\d+ +a:1 +1,200 calls, 3 tunnels open$", status.render(found), re.MULTILINE)
    say(home, "door-2", **DOOR)
    assert status.is_ready(home, Config())


def test_status_says_why_a_door_has_failed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name in ("broker", "store", "control", "work-1"):
        say(home, name)
    doors = [{"name": "door-1", "pid": None, "state": "failed", "why": "issuer.jwks_file: /f: cannot be read"}]
    say(home, "enforce-1", doors=doors)
    found = status.collect(home, Config())
    assert not found.ready
    assert "door-1: issuer.jwks_file: /f: cannot be read" in found.blocked
