"""The ground for a containment: a home with a door that stands in for the real one, a working folder, an outside to be reached.

`tests/support/ordinary.py` makes an ordinary user of root, so that a test can be both.
"""

import base64
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.cli.contain import view
from schemas.home import Home
from schemas.process import private_dir
from tests.support import ordinary, waysout
from tests.support.home import COMMAND

NO_NAMESPACES = "no user namespace can be made here"
NO_NFT = "only root with nft and ip can load packet filters"
NO_PROGRAM = "not installed here"
ORDINARY_ID = 54_321
SECRET = "R4nd0m-s3cr3t_of-the-agent"
DISK_NUMBERS = (7, 0)


def can_contain() -> bool:
    """Whether the system lets this user make namespaces."""
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) != 0)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Answering:
    """Answers `outside` to whoever says anything, at one socket, and counts them."""

    def __init__(self, family: int, address: Any, kind: int = socket.SOCK_STREAM) -> None:
        self.socket = socket.socket(family, kind)
        self.socket.bind(address)
        self.heard = 0
        self._stream = kind == socket.SOCK_STREAM
        if self._stream:
            self.socket.listen(16)
        self.address = self.socket.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.address[1])

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                if not self._stream:
                    _, who = self.socket.recvfrom(4096)
                    if who is None:
                        return  # closed
                    self.heard += 1
                    self.socket.sendto(b"outside", who)
                    continue
                one, _ = self.socket.accept()
                threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            one.settimeout(300)
            asked = one.recv(4096)
            self.heard += 1
            one.sendall(b"HTTP/1.0 200 OK\r\n\r\noutside" if asked.startswith(b"GET ") else b"outside")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class StandIn:
    """A proxy in the place of a door, on its unix socket and a port: it knows one credential, and as much HTTP as a test asks.

    CONNECT and absolute-form go to `origin` whatever they name, so that a test needs no network.
    """

    def __init__(self, home: Home, origin: tuple[str, int] | None = None, name: str = "door-1") -> None:
        self.origin = origin
        self.heads: list[bytes] = []
        private_dir(home.run)
        path = home.door_socket(name)
        path.unlink(missing_ok=True)
        self._listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self._listeners[1].bind(str(path))
        self._listeners[1].listen(128)
        host, port = self._listeners[0].getsockname()
        said = {"name": name, "pid": os.getpid(), "state": "ready", "address": f"{host}:{port}", "socket": str(path)}
        home.run_file(name).write_text(json.dumps(said))
        for listener in self._listeners:
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            one.settimeout(20)
            head = b""
            while b"\r\n\r\n" not in head:
                part = one.recv(65536)
                if not part:
                    return
                head += part
            head, _, early = head.partition(b"\r\n\r\n")
            self.heads.append(head)
            said = [line for line in head.split(b"\r\n") if line.lower().startswith(b"proxy-authorization:")]
            if len(said) != 1 or not _known(said[0]):
                one.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if self.origin is None:
                body = b"through the door\n"
                one.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                return
            with socket.create_connection(self.origin, 10) as up:
                if head.startswith(b"CONNECT "):
                    one.sendall(b"HTTP/1.1 200 Connection Established\r\n\r\n")
                    up.sendall(early)
                else:
                    up.sendall(_origin_form(head) + b"\r\n\r\n" + early)
                back = threading.Thread(target=_pour, args=(up, one), daemon=True)
                back.start()
                _pour(one, up)
                back.join(20)

    def close(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _known(line: bytes) -> bool:
    user, _, secret = base64.b64decode(line.split()[-1]).decode().partition(":")
    return user.partition("+")[0] == "researcher" and secret == SECRET


def _origin_form(head: bytes) -> bytes:
    first, _, rest = head.partition(b"\r\n")
    method, target, version = first.split(b" ")
    lines = [line for line in rest.split(b"\r\n") if not line.lower().startswith(b"proxy-")]
    return b"\r\n".join([method + b" /" + target.split(b"/", 3)[3] + b" " + version, *lines])


def _pour(there: socket.socket, here: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := there.recv(65536):
            here.sendall(part)
        here.shutdown(socket.SHUT_WR)


class Ground:
    """A folder that an ordinary user can enter: a home with a door in it, and a working folder beside."""

    def __init__(self, who: str) -> None:
        self.uid = ORDINARY_ID if who == "ordinary" and os.geteuid() == 0 else os.geteuid()
        self.top = Path(tempfile.mkdtemp(prefix="wl-"))
        self.top.chmod(0o755)
        self.home = Home(self.top / "home")
        self.user_home = self.top / "user"
        self.work = self.top / "work"
        for folder in (self.home.root, self.user_home, self.work):
            folder.mkdir(mode=0o700)
        self.door = StandIn(self.home)
        self._started: list[subprocess.Popen[str]] = []
        self.give()

    def give(self) -> None:
        """What is there is the user's."""
        for path in [self.top, *self.top.rglob("*")]:
            os.chown(path, self.uid, self.uid if self.uid == ORDINARY_ID else -1, follow_symlinks=False)

    def words(self, *command: str, options: Sequence[str] = ("--contain",)) -> list[str]:
        """The whole command line of a run as this user."""
        run = [*COMMAND, "run", "--home", str(self.home.root), "--as", "researcher", *options, "--", *command]
        return [*self.as_user(), *run]

    def as_user(self) -> list[str]:
        """What to put before a command that is to be the user's."""
        return [sys.executable, "-P", ordinary.__file__, str(self.uid)] if self.uid != os.geteuid() else []

    def environment(self, **more: str) -> dict[str, str]:
        """What the user has in theirs."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return kept | {"HOME": str(self.user_home), "WARDLINE_CREDENTIAL": SECRET} | more

    def popen(self, *command: str, options: Sequence[str] = ("--contain",), env: dict[str, str] | None = None,
              **more: Any) -> "subprocess.Popen[str]":  # fmt: skip
        """Start a run."""
        settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            self.words(*command, options=options), cwd=self.work, env=env or self.environment(), text=True, **settings | more
        )
        self._started.append(process)
        return process

    def run(self, *command: str, timeout: float = 60, options: Sequence[str] = ("--contain",),
            **more: Any) -> "subprocess.CompletedProcess[str]":  # fmt: skip
        """A run to its end."""
        process = self.popen(*command, options=options, **more)
        try:
            out, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, errors)

    def python(self, *words: str, options: Sequence[str] = ("--contain",), **more: Any) -> "subprocess.CompletedProcess[str]":
        """Run Python inside, which may lie where a containment does not look."""
        python, seen = self.python_inside()
        return self.run(python, *words, options=[*options, *seen], **more)

    @staticmethod
    def python_inside() -> tuple[str, list[str]]:
        """The interpreter, and the options by which it is there inside."""
        base = os.path.realpath(sys.base_prefix)
        there = any(base == one or base.startswith(f"{one}/") for one in view.SYSTEM)
        return os.path.realpath(sys.executable), [] if there else ["--ro-bind", base]

    def close(self) -> None:
        for process in self._started:  # a test that failed may have left one
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.door.close()
        shutil.rmtree(self.top, ignore_errors=True)

    def __enter__(self) -> "Ground":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Outside:
    """What a contained program would like to reach, of every kind there is."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.address = _own_address()
        (ground.work / "deep" / "er").mkdir(parents=True)
        shutil.copy(waysout.__file__, ground.work / "waysout.py")
        home = ground.home
        for path in (home.private_key("control", "0"), ground.user_home / ".ssh" / "id_ed25519", ground.top / "beside"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text("private")
            path.chmod(0o600)
        unix = [ground.top / "a.sock", home.control_socket, ground.work / "deep" / "er" / "agent.sock", ground.top / "ssh.sock"]
        home.door_socket("door-1").unlink()  # in the place of the door's: it says `outside`
        unix.append(home.door_socket("door-1"))
        self.abstract = f"wardline-test-{os.getpid()}"
        self.servers = [
            Answering(socket.AF_INET, ("0.0.0.0", 0)), Answering(socket.AF_INET6, ("::1", 0)),
            Answering(socket.AF_INET, ("0.0.0.0", 0), socket.SOCK_DGRAM),
            Answering(socket.AF_INET6, ("::1", 0), socket.SOCK_DGRAM),
            *(Answering(socket.AF_UNIX, str(path)) for path in unix), Answering(socket.AF_UNIX, f"\0{self.abstract}"),
        ]  # fmt: skip
        self.held = socket.create_connection(("127.0.0.1", self.servers[0].port))
        self.memory = ctypes.CDLL(None).shmget(0x57444C00 + os.getpid() % 256, 16, 0o1666)
        self.named = Path(f"/dev/shm/{self.abstract}")
        self.named.write_text("shared")
        self.named.chmod(0o666)
        ground.give()
        self.process = subprocess.Popen([*ground.as_user(), "sleep", "600"])

    def facts(self) -> str:
        """For `waysout`."""
        tcp, tcp6, udp, udp6 = (server.port for server in self.servers[:4])
        return json.dumps({
            "address": self.address, "tcp": tcp, "tcp6": tcp6, "udp": udp, "udp6": udp6, "abstract": self.abstract,
            "tmp_socket": str(self.ground.top / "a.sock"), "home": str(self.ground.home.root), "work": str(self.ground.work),
            "user_home": str(self.ground.user_home), "beside": str(self.ground.top / "beside"), "pid": self.process.pid,
            "shm": 0x57444C00 + os.getpid() % 256, "dev_shm": str(self.named), "disk": DISK_NUMBERS,
        })  # fmt: skip

    def heard(self) -> int:
        """How often anybody outside was spoken to."""
        return sum(server.heard for server in self.servers)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.held.close()
        for server in self.servers:
            server.close()
        ctypes.CDLL(None).shmctl(self.memory, 0, None)
        self.named.unlink()


def _own_address() -> str:
    """An address of this host that is not its loopback, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
        one.connect(("192.0.2.1", 9))
        return str(one.getsockname()[0])
    return "127.0.0.1"


def family(top: int) -> dict[int, str]:
    """A process and all that came from it: pid -> its arguments."""
    found = {top: ""}
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError, IndexError):
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if above in found or int(path.name) == top:
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
    return found


def running(text: str) -> list[int]:
    """The processes with a text among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (path / "cmdline").read_text().split("\0"):
                found.append(int(path.name))
    return found
