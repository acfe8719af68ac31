"""Egress doors for tests: real door processes on a home that is nothing but a board, origins of few words, and raw clients.

    with EgressSite(tmp_path / "home", agents=("reader",)) as site, RawOrigin(answer_ok) as origin:
        door = site.start()
        with door.connect() as client:
            client.sendall(site.get(origin.authority))
            assert read_answer(client).status == 200
        assert [said["kind"] for said in site.records()] == ["decision", "effect"]

`site.revoke`, `lift`, `pause`, `decide_by` and `stale` write the board as a host would; a thread keeps it fresh. Nothing is
sealed or sent, so `records` has everything that the doors wrote.
"""

import base64
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from enforcers.doors.egress.orders import Orders
from ext.board import BoardWriter
from ext.spool import SpoolReader
from schemas.agents import Agent, encode
from schemas.bundle import Bundle, Rule
from schemas.config import Egress, Enforcer, Issuer
from schemas.home import Home
from schemas.keys import query_key
from schemas.process import private_dir, write_atomic
from schemas.records import STRING_FIELDS, Kind, Outcome, call_id, make_boot
from tests.support.oracles import Rec, apart, parse_records

HOST: Final = "enforce-1"
SECRET: Final = "swordfish"
"""Of every agent."""

PERMIT: Final = Bundle(rules=(Rule(id="all", forbid=False),))
"""Permits everything, `tcp:CONNECT` too."""

FRESH_NS: Final = 2_000_000_000
KINDS: Final = {int(kind): kind.name.lower() for kind in Kind}
OUTCOMES: Final = {int(outcome): outcome.name.lower() for outcome in Outcome}


def secret_hash(secret: str) -> str:
    """As `wardline agent add` keeps it, with a cost that a test can bear."""
    made = hashlib.scrypt(secret.encode(), salt=b"salt" * 4, n=1 << 10, r=8, p=1, dklen=32)
    parts = (base64.b64encode(part).decode() for part in (b"salt" * 4, made))
    return "$".join(("scrypt", str(1 << 10), "8", "1", *parts))


def credential(user: str = "reader", secret: str = SECRET) -> bytes:
    """The value of `Proxy-Authorization`."""
    return b"Basic " + base64.b64encode(f"{user}:{secret}".encode())


def free_port(address: str = "127.0.0.1") -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _said(boot: int, seq: int, record: Rec) -> dict[str, Any]:
    """The fields of a record by name."""
    said = {name: getattr(record, name) for name in record.__dataclass_fields__ if name not in ("texts", "end")}
    said |= dict(zip(STRING_FIELDS, record.texts, strict=True))
    return said | {
        "seq": seq, "call": call_id(boot, record.call_seq or seq), "kind": KINDS[record.kind],
        "outcome": OUTCOMES[record.outcome],
    }  # fmt: skip


@dataclass
class DoorProcess:
    """One door process."""

    site: "EgressSite"
    name: str
    boot: str
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def said(self) -> dict[str, Any]:
        """Its run file; empty where there is none."""
        try:
            return dict(json.loads(self.site.home.run_file(self.name).read_bytes()))
        except (OSError, ValueError):
            return {}

    def connect(self) -> socket.socket:
        """A connection to its port."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def until_ready(self, seconds: float = 20) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + seconds
        while self.said.get("state") != "ready" or self.said.get("pid") != self.process.pid:
            assert self.process.poll() is None, f"the door has ended: {self.log()}"
            assert time.monotonic() < deadline, f"the door does not start: {self.said} {self.log()}"
            time.sleep(0.01)

    def log(self) -> str:
        """What it printed."""
        return self.site.home.log.joinpath(f"{self.name}.log").read_text()

    def figures(self) -> dict[str, float]:
        """What its metrics say."""
        import urllib.request

        with urllib.request.urlopen(f"http://{self.said['metrics']}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (one.rpartition(" ") for one in lines if not one.startswith("#"))}

    def memory_bytes(self) -> int:
        """Of its own pages in memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")

    def stop(self) -> int:
        """As its host stops it; returns the exit code."""
        self.process.terminate()
        return self.process.wait(20)


@dataclass
class EgressSite:
    """A home whose only host is a board."""

    root: Path
    agents: tuple[str, ...] = ("reader",)
    bundle: Bundle = PERMIT
    allow_addresses: tuple[str, ...] = ("127.0.0.0/8",)
    egress: dict[str, Any] = field(default_factory=dict)
    enforcer: Enforcer = field(default_factory=Enforcer)
    issuers: tuple[Issuer, ...] = ()
    listed: tuple[Agent, ...] = ()
    """Agents beside `agents`, as they are."""

    def __post_init__(self) -> None:
        self.home = Home(self.root)
        private_dir(self.home.host(HOST) / "bundle")
        private_dir(self.home.run)
        private_dir(self.home.log)
        query_key(self.home)
        self.board = BoardWriter(str(self.home.board(HOST)), 1)
        self.doors: list[DoorProcess] = []
        self.epoch = 0
        self._paused = False
        self._revoked: set[str] = set()
        self._policy = b""
        self._readers: dict[int, tuple[SpoolReader, list[dict[str, Any]]]] = {}
        self._end = threading.Event()
        self._guard = threading.Lock()
        self._fresh = True
        self.put_agents(*self.agents)
        self.decide_by(self.bundle)
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self._thread.start()

    # -- the board ---------------------------------------------------------------------------------------------------

    def _keep_fresh(self) -> None:
        while True:
            with self._guard:
                if self._fresh:
                    self.board.fresh(time.monotonic_ns() + FRESH_NS)
            if self._end.wait(0.2):
                return

    def _change(self, revoke: tuple[str, ...] = (), lift: tuple[str, ...] = ()) -> int:
        with self._guard:
            self.epoch += 1
            self.board.change(
                [(text, 0) for text in revoke], lift, epoch=self.epoch, paused=self._paused, policy=self._policy
            )
        return self.epoch

    def put_agents(self, *names: str) -> None:
        """The agents' file, as of the epoch that comes next."""
        made = [Agent(name=name, owner="alice", secret=secret_hash(SECRET)) for name in names]
        write_atomic(self.home.agents(HOST), encode([*made, *self.listed], self.epoch + 1))

    def know(self, *names: str) -> int:
        """Control knows these agents and no other from now on."""
        self.put_agents(*names)
        return self._change()

    def decide_by(self, bundle: Bundle) -> int:
        """Control names these policies."""
        (self.home.host(HOST) / "bundle" / f"{bundle.digest}.json").write_bytes(bundle.encode())
        self._policy = bytes.fromhex(bundle.digest)
        return self._change()

    def revoke(self, *texts: str) -> int:
        """`agent:reader`, `session:s-1`, `destination:example.com` ..."""
        return self._change(revoke=texts)

    def lift(self, *texts: str) -> int:
        """They are not revoked any more."""
        return self._change(lift=texts)

    def pause(self, paused: bool = True) -> int:
        """Everything."""
        self._paused = paused
        return self._change()

    def stale(self, stale: bool = True) -> None:
        """Whether the board may be believed."""
        with self._guard:
            self._fresh = not stale
            self.board.fresh(0 if stale else time.monotonic_ns() + FRESH_NS)

    # -- doors -------------------------------------------------------------------------------------------------------

    def start(self, name: str = "", port: int = 0, *, ready: bool = True) -> DoorProcess:
        """Another door process."""
        name = name or f"door-{len(self.doors) + 1}"
        port = port or free_port()
        boot = f"{make_boot(int(time.time()), int.from_bytes(os.urandom(4), 'big')):016x}"
        egress = Egress(**{"port": port, "allow_addresses": self.allow_addresses, **self.egress})
        orders = Orders(
            host=HOST, name=name, boot=boot, port=port, own=(), egress=egress, enforcer=self.enforcer, issuers=self.issuers
        )
        with open(self.home.log / f"{name}.log", "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "enforcers.doors.egress.run", "--home", str(self.root)],
                stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, "WARDLINE_PARENT": str(os.getpid())},
                cwd=Path(__file__).parents[2],
            )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(orders.encode())
            process.stdin.close()
        door = DoorProcess(self, name, boot, port, process)
        self.doors.append(door)
        if ready:
            door.until_ready()
        return door

    def get(self, authority: str, path: str = "/", *lines: str, method: str = "GET", user: str = "reader") -> bytes:
        """A request without a body."""
        extra = "".join(f"{line}\r\n" for line in lines)
        return (
            f"{method} http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n"
            f"Proxy-Authorization: {credential(user).decode()}\r\n{extra}\r\n"
        ).encode()

    def connect(self, authority: str, user: str = "reader") -> bytes:
        """What asks for a tunnel."""
        return (
            f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: {credential(user).decode()}\r\n\r\n"
        ).encode()

    # -- what was recorded -------------------------------------------------------------------------------------------

    def records(self, door: DoorProcess | None = None) -> list[dict[str, Any]]:
        """Every record of a door (the first one), in order: all fields by name; `call` is the id of its call.

        A whole decision is told as the two that it stands for: whether the door or this reader came first is a race.
        """
        one = door or self.doors[0]
        boot = int(one.boot, 16)
        if boot not in self._readers:
            self._readers[boot] = SpoolReader(str(self.home.host(HOST) / "doors" / one.boot), boot), []
        reader, found = self._readers[boot]
        while runs := reader.read(1 << 20, 1 << 24):
            for run in runs:
                for seq, record in parse_records(bytes(run.view)):
                    found += [_said(boot, seq, one) for one in apart(seq, record)]
        return list(found)

    def sweep(self, door: DoorProcess | None = None) -> int:
        """Make room as a host does that has sealed everything: all segments but the last one go. Returns how many."""
        one = door or self.doors[0]
        self.records(one)
        *old, _ = sorted((self.home.host(HOST) / "doors" / one.boot).glob("0*.seg"))
        for segment in old:
            segment.unlink()
        return len(old)

    def until_records(self, count: int, door: DoorProcess | None = None, seconds: float = 10) -> list[dict[str, Any]]:
        """The records, as soon as there are so many."""
        deadline = time.monotonic() + seconds
        while len(found := self.records(door)) < count:
            assert time.monotonic() < deadline, f"{len(found)} records, not {count}: {found}"
            time.sleep(0.01)
        return found

    def effect_of(self, call: str, door: DoorProcess | None = None, seconds: float = 10) -> dict[str, Any]:
        """The effect of a call, as soon as it is there."""
        deadline = time.monotonic() + seconds
        while True:
            for said in self.records(door):
                if said["kind"] == "effect" and said["call"] == call:
                    return said
            assert time.monotonic() < deadline, f"{call} has no effect"
            time.sleep(0.01)

    def close(self) -> None:
        """Stop everything."""
        for door in self.doors:
            door.process.kill()
            door.process.wait()
        self._end.set()
        self._thread.join()
        for reader, _ in self._readers.values():
            reader.close()
        self.board.close()

    def __enter__(self) -> "EgressSite":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
