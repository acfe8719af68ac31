"""How a host keeps its egress doors: told apart by what they do, which a few lines of Python do here in a door's place."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from enforcers.doors.names import claim_name
from enforcers.host import keeper as module
from enforcers.host.keeper import Keeper, door_command, own_servers
from schemas.config import ClickHouse, Config, Control, Egress, Enforcer, Issuer, Kafka
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import Lock, is_alive, write_run_file

HEAD = """
import json, os, signal, sys, time
root = sys.argv[1]
line = sys.stdin.buffer.readline()
if not line:
    os._exit(0)
orders = json.loads(line)
name = orders["name"]
with open(f"{root}/{name}.starts", "a") as file:
    file.write(json.dumps({"at": time.monotonic(), "pid": os.getpid(), "orders": orders}) + "\\n")
def say(state, pid=os.getpid()):
    path = f"{root}/run/{name}.json"
    with open(path + ".new", "w") as file:
        json.dump({"name": name, "pid": pid, "state": state, "address": "here"}, file)
    os.rename(path + ".new", path)
def leave(*_):
    os.unlink(f"{root}/run/{name}.json")
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
"""
GOOD = "say('ready')\ntime.sleep(60)\n"


class Doors:
    """A keeper, and what its doors do, which may change between two starts of one."""

    def __init__(self, root: Path, body: str = GOOD, *, doors: int = 1, port: int = 0, config: Config | None = None) -> None:
        self.home = Home(root)
        self.home.run.mkdir(parents=True, exist_ok=True)
        self.body = body
        self.head = ""
        """What a process does before it asks for its orders."""
        self.keeper = Keeper(self.home, config or Config(), "enforce-1", doors=doors, port=port, command=self._command)

    def _command(self, home: Home) -> list[str]:
        return [sys.executable, "-S", "-E", "-c", self.head + HEAD + self.body, str(home.root)]

    def starts(self, name: str = "door-1") -> list[dict[str, Any]]:
        path = self.home.root / f"{name}.starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def said(self, name: str = "door-1") -> dict[str, Any]:
        return dict(next(door for door in self.keeper.said()["doors"] if door["name"] == name))

    def play(self, story: Callable[[], Awaitable[None]]) -> None:
        """Bind, keep, and tell the story meanwhile; whatever lives at its end is killed."""

        async def main() -> None:
            await self.keeper.bind()
            task = asyncio.create_task(self.keeper.run())
            try:
                await story()
            finally:
                task.cancel()
                self.keeper.close()

        asyncio.run(main())


async def until(what: Callable[[], Any], seconds: float = 10.0) -> float:
    """Wait until it is so; returns the seconds that it took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun




def test_every_door_has_its_orders_and_all_have_one_port(tmp_path: Path) -> None:
    config = Config(
        kafka=Kafka(servers="kafka-1.example:9093, kafka-2.example:9093"),
        egress=Egress(allow_addresses=("10.0.0.0/8",)),
        enforcer=Enforcer(spool_bytes=1 << 24),
        issuer=(Issuer(url="https://idp.example", audience="a", jwks_file="/f"),),
    )
    doors = Doors(tmp_path, doors=3, config=config)

    async def story() -> None:
        await until(lambda: doors.keeper.settled)
        assert [door["name"] for door in doors.keeper.said()["doors"]] == ["door-1", "door-2", "door-3"]
        assert all(doors.said(f"door-{n}") == {
            "name": f"door-{n}", "pid": doors.starts(f"door-{n}")[0]["pid"], "state": "ready", "why": "",
        } for n in (1, 2, 3))  # fmt: skip
        orders = [doors.starts(f"door-{n}")[0]["orders"] for n in (1, 2, 3)]
        assert doors.keeper.said()["proxy"] == f"127.0.0.1:{orders[0]['port']}"
        assert len({one["port"] for one in orders}) == 1
        assert len({one["boot"] for one in orders}) == 3
        assert orders[0]["host"] == "enforce-1"
        assert orders[0]["own"] == ["kafka-1.example:9093", "kafka-2.example:9093"]
        assert orders[0]["egress"]["allow_addresses"] == ["10.0.0.0/8"]
        assert orders[0]["enforcer"]["spool_bytes"] == 1 << 24
        assert orders[0]["issuers"][0]["jwks_file"] == "/f"

    doors.play(story)


def test_the_port_is_kept_and_nobody_waits_at_it_while_no_door_listens(tmp_path: Path) -> None:
    doors = Doors(tmp_path)

    async def story() -> None:
        host, _, port = doors.keeper.address.partition(":")
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect((host, int(port)))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))
        with socket.socket() as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            door.bind((host, int(port)))

    doors.play(story)


def test_a_killed_door_is_back_within_a_second_under_its_name_and_another_boot(tmp_path: Path) -> None:
    doors = Doors(tmp_path, doors=2)

    async def story() -> None:
        await until(lambda: doors.keeper.settled)
        before = doors.said("door-2")["pid"]
        for _ in range(2):  # twice within QUICK_S: not often enough to wait for long
            first = doors.said()["pid"]
            os.kill(first, signal.SIGKILL)
            begun = time.monotonic()
            while doors.said()["state"] != "ready" or doors.said()["pid"] == first:
                assert time.monotonic() - begun < 1.0
                await asyncio.sleep(0.01)
        assert doors.said("door-2")["pid"] == before
        starts = doors.starts()
        assert len({one["orders"]["boot"] for one in starts}) == len(starts) == 3
        assert len({one["orders"]["port"] for one in starts}) == 1

    doors.play(story)


def spare(doors: Doors) -> int:
    """The process that waits for orders; 0 while there is none."""
    held = doors.keeper._spare
    return held.popen.pid if held is not None else 0


def test_a_process_that_has_loaded_everything_is_the_next_door_whichever_dies(tmp_path: Path) -> None:
    doors = Doors(tmp_path, doors=2)
    doors.head = "import time\ntime.sleep(0.6)\n"  # as if everything took long to load

    async def story() -> None:
        await until(lambda: doors.keeper.settled)
        for name in ("door-2", "door-1"):
            await until(lambda: spare(doors) != 0)
            await asyncio.sleep(0.8)
            waiting, old = spare(doors), doors.said(name)["pid"]
            os.kill(old, signal.SIGKILL)
            begun = time.monotonic()
            while doors.said(name)["pid"] in (old, None) or doors.said(name)["state"] != "ready":
                assert time.monotonic() - begun < 0.5
                await asyncio.sleep(0.01)
            assert doors.said(name)["pid"] == waiting
        assert (tmp_path / "log" / "door-1.log.1").exists(), "the log of the one before is kept"
        assert [len(doors.starts(name)) for name in ("door-1", "door-2")] == [2, 2]

    doors.play(story)
    assert not list((tmp_path / "log").glob(".*")), "a process that never was a door leaves no log"


def test_a_spare_that_dies_is_replaced_and_a_door_starts_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY_MAX_S", 0.2)
    doors = Doors(tmp_path)

    async def story() -> None:
        await until(lambda: spare(doors) != 0)
        first = spare(doors)
        os.kill(first, signal.SIGKILL)
        await until(lambda: spare(doors) not in (0, first))
        old = doors.said()["pid"]
        for pid in (spare(doors), old):  # both between two looks
            os.kill(pid, signal.SIGKILL)
        await until(lambda: doors.said()["state"] == "ready" and doors.said()["pid"] != old, 2)

    doors.play(story)


def test_no_spare_takes_the_time_of_doors_that_do_not_listen_yet(tmp_path: Path) -> None:
    doors = Doors(tmp_path, "time.sleep(0.5)\n" + GOOD)

    async def story() -> None:
        await until(lambda: bool(doors.starts()))
        assert spare(doors) == 0
        await until(lambda: doors.keeper.settled and spare(doors) != 0)

    doors.play(story)


def test_a_door_that_an_operator_must_put_right_is_named_with_its_words_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_MAX_S", 0.5)
    body = "print('door-1 INFO: up', flush=True)\nsys.stderr.write('wardline: /f: is no key\\n')\nos._exit(2)\n"
    doors = Doors(tmp_path, body)

    async def story() -> None:
        await until(lambda: doors.keeper.settled)
        assert doors.said() == {"name": "door-1", "pid": None, "state": "failed", "why": "/f: is no key"}
        assert len(doors.starts()) == 1, "one is enough to know"
        doors.body = GOOD
        await until(lambda: doors.said()["state"] == "ready")
        assert doors.said()["why"] == ""

    doors.play(story)


def test_a_door_that_dies_again_and_again_is_started_later_each_time_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_MAX_S", 1.0)
    doors = Doors(tmp_path, "raise SystemExit('Fault: it broke')\n")

    async def story() -> None:
        await until(lambda: doors.keeper.settled)
        assert len(doors.starts()) == module.TRIES
        why = "ended with exit code 1: Fault: it broke"
        assert doors.said() == {"name": "door-1", "pid": None, "state": "failed", "why": why}
        await until(lambda: len(doors.starts()) == 7)
        at = [one["at"] for one in doors.starts()]
        gaps = [later - earlier for earlier, later in pairwise(at)]
        wanted = (0.0, 0.25, 0.5, 1.0, 1.0, 1.0)
        assert all(least <= gap < least + 0.5 for least, gap in zip(wanted, gaps, strict=True)), gaps

    doors.play(story)


def test_a_door_that_lived_and_dies_again_later_is_not_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUICK_S", 0.2)
    doors = Doors(tmp_path, "say('ready')\ntime.sleep(0.4)\nos._exit(1)\n")

    async def story() -> None:
        await until(lambda: len(doors.starts()) == 6)
        at = [one["at"] for one in doors.starts()]
        assert at[5] - at[0] < 5 * 0.9
        assert doors.said()["state"] != "failed"

    doors.play(story)


SILENT = {
    "one that only starts": "say('starting')\ntime.sleep(60)\n",
    "one that says nothing": "time.sleep(60)\n",
    "one that says another's": "say('ready', os.getppid())\ntime.sleep(60)\n",
    "one whose word another one overwrites": "say('ready')\ntime.sleep(0.3)\nsay('ready', os.getppid())\ntime.sleep(60)\n",
}


@pytest.mark.parametrize("body", SILENT.values(), ids=SILENT)
def test_a_door_that_does_not_say_for_itself_that_it_listens_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(module, "READY_S", 0.8)
    doors = Doors(tmp_path, body)

    async def story() -> None:
        await until(lambda: bool(doors.starts()))
        first = doors.starts()[0]["pid"]
        await until(lambda: len(doors.starts()) == 2)
        assert not is_alive(first)
        assert doors.said()["why"] == "was not ready for 1 s and was killed"
        assert doors.keeper.settled, "its host does not wait for it any longer"

    doors.play(story)


def test_doors_are_asked_to_stop_and_a_deaf_one_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.5)
    config = Config(egress=Egress(stop_ms=300))
    deaf = "if name == 'door-2': signal.signal(signal.SIGTERM, lambda *_: None)\n"
    doors = Doors(tmp_path, deaf + GOOD, doors=3, config=config)

    async def story() -> None:
        await until(lambda: doors.keeper.settled)
        pids = [doors.said(f"door-{n}")["pid"] for n in (1, 2, 3)]
        os.kill(pids[2], signal.SIGSTOP)  # one that stands still hears it all the same
        begun = time.monotonic()
        await doors.keeper.stop()
        assert 0.8 <= time.monotonic() - begun < 2.0
        assert not any(is_alive(pid) for pid in pids)
        assert list(doors.home.run.glob("*.json")) == []
        assert len(doors.starts()) == 1, "none is started again"
        await asyncio.sleep(3 * module.LOOK_S)
        assert [len(doors.starts(f"door-{n}")) for n in (1, 2, 3)] == [1, 1, 1]

    doors.play(story)
    assert claim_name(doors.home)[0] == "door-1", "the names are free again"


@pytest.mark.parametrize("shares", [False, True], ids=["somebody else's", "that of another home's doors"])
def test_a_port_that_is_in_use_is_named_with_who_must_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    monkeypatch.setattr(module, "PORT_WAIT_S", 0.3)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        doors = Doors(tmp_path, port=port)
        with pytest.raises(OperatorFault) as caught:
            asyncio.run(doors.keeper.bind())
    assert str(caught.value) == (
        f"egress.port: {port} of 127.0.0.1 cannot be taken: address already in use; end whoever listens there, or choose"
        " another (egress.port, egress.listen, --egress-port)"
    )
    assert claim_name(doors.home)[0] == "door-1", "no name is kept"


def test_a_host_waits_for_the_doors_of_one_that_was_killed(tmp_path: Path) -> None:
    with socket.socket() as old:
        old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        old.bind(("127.0.0.1", 0))
        old.listen()
        doors = Doors(tmp_path, port=old.getsockname()[1])

        async def story() -> None:
            asyncio.get_running_loop().call_later(0.3, old.close)
            begun = time.monotonic()
            await doors.keeper.bind()
            assert 0.25 < time.monotonic() - begun < 2
            doors.keeper.close()

        asyncio.run(story())


def test_a_free_port_is_that_of_the_last_start_where_it_can_be(tmp_path: Path) -> None:
    first = Doors(tmp_path)

    async def nothing() -> None:
        pass

    first.play(nothing)
    write_run_file(first.home.run_file("enforce-1"), {"name": "enforce-1", "pid": 1, **first.keeper.said()})
    second = Doors(tmp_path)
    second.play(nothing)
    assert second.keeper.address == first.keeper.address
    host, _, port = first.keeper.address.partition(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        third = Doors(tmp_path)
        third.play(nothing)
        assert third.keeper.address not in ("", first.keeper.address)


@pytest.mark.parametrize(("listen", "text"), [
    ("localhost", "egress.listen: `localhost` is no address, such as 127.0.0.1 or ::1"),
    ("192.0.2.1", "egress.port: 4711 of 192.0.2.1 cannot be taken: cannot assign requested address; "),
])  # fmt: skip
def test_an_address_that_cannot_be_listened_on_is_named_at_once(tmp_path: Path, listen: str, text: str) -> None:
    doors = Doors(tmp_path, port=4711, config=Config(egress=Egress(listen=listen)))
    begun = time.monotonic()
    with pytest.raises(OperatorFault) as caught:
        asyncio.run(doors.keeper.bind())
    assert str(caught.value).startswith(text)
    assert time.monotonic() - begun < 1


def test_an_address_of_the_sixth_version_stands_in_brackets(tmp_path: Path) -> None:
    doors = Doors(tmp_path, config=Config(egress=Egress(listen="::1")))

    async def story() -> None:
        assert doors.keeper.address.startswith("[::1]:")

    doors.play(story)


def test_a_host_without_doors_takes_no_port_and_is_not_waited_for(tmp_path: Path) -> None:
    doors = Doors(tmp_path, doors=0, port=1)

    async def story() -> None:
        assert doors.keeper.settled
        assert doors.keeper.said() == {"proxy": "", "doors": []}
        await doors.keeper.stop()

    doors.play(story)


def test_names_are_claimed_once_by_whoever_starts_doors(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first, second = claim_name(home), claim_name(home, leaving=True)
    assert (first[0], second[0]) == ("door-1", "door-2")
    first[1].release()
    held = Lock(home.run / "door-1.lock")
    assert held.take()  # a door whose starter was killed: it leaves in a moment
    assert claim_name(home)[0] == "door-3"
    assert claim_name(home, leaving=True)[0] == "door-1"


def test_what_wardline_listens_on_elsewhere_is_named_whatever_the_spelling() -> None:
    assert own_servers(Config()) == ()
    config = Config(
        kafka=Kafka(servers="a.example:9092, b.example:9092"),
        clickhouse=ClickHouse(url="https://store.example"),
        control=Control(listen="10.0.0.1:8443", url="https://[fd00::1]"),
    )
    assert own_servers(config) == (
        "a.example:9092", "b.example:9092", "10.0.0.1:8443", "store.example:8443", "[fd00::1]:443",
    )  # fmt: skip
    assert own_servers(Config(clickhouse=ClickHouse(url="http://store.example:9000"))) == ("store.example:9000",)


def test_a_door_is_a_program_of_ours_whatever_lies_in_the_current_folder(tmp_path: Path) -> None:
    words = door_command(Home(tmp_path))
    assert words[:3] == [sys.executable, "-P", "-m"]
    assert words[4:] == ["--home", str(tmp_path)]
