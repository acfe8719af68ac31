"""`wardline run --contain`: every way out that we know of is tried from within, as an ordinary user and as root.

Each is tried outside too, where it must work: a way that nobody has proves nothing.
"""

import base64
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest

from schemas.home import Home
from schemas.process import is_alive
from tests.support import waysout
from tests.support.contained import (
    NO_NAMESPACES,
    ORDINARY_ID,
    SECRET,
    Answering,
    Ground,
    Outside,
    StandIn,
    can_contain,
    family,
    running,
)
from tests.support.controlling import NOT_ROOT
from tests.support.home import COMMAND, wait_until

pytestmark = pytest.mark.skipif(not can_contain(), reason=NO_NAMESPACES)
WHO = ["ordinary", pytest.param("root", marks=pytest.mark.skipif(os.geteuid() != 0, reason=NOT_ROOT))]
KERNELS_OWN = ("the_hypervisor_by_vsock", "a_family_with_high_bits", "io_uring", "keys_of_the_kernel", "a_bpf_program")
"""Not every kernel has them, or lets anybody use them."""


@pytest.fixture(params=WHO)
def both(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A ground of an ordinary user, and one of root."""
    with Ground(request.param) as made:
        yield made


@pytest.fixture
def ground() -> Iterator[Ground]:
    """A ground of an ordinary user."""
    with Ground("ordinary") as made:
        yield made


class Tried:
    """What became of each way, inside and outside."""

    def __init__(self, who: str) -> None:
        with Ground(who) as ground:
            outside = Outside(ground)
            try:
                env = ground.environment(SSH_AUTH_SOCK=str(ground.top / "ssh.sock"))
                handle = outside.held.fileno()
                ways = [*waysout.OPEN, *(waysout.OPEN_FOR_ROOT if who == "root" else ())]
                words = [*ground.as_user(), os.path.realpath(sys.executable), "waysout.py", outside.facts(), *ways]
                free = subprocess.run(
                    words, cwd=ground.work, env=env, pass_fds=[handle], capture_output=True, text=True, timeout=240, check=False
                )
                assert free.returncode == 0, free.stderr
                self.outside: dict[str, str] = json.loads(free.stdout)
                assert outside.heard() > 10
                before = outside.heard()
                kept = ground.python("waysout.py", outside.facts(), env=env, pass_fds=[handle], timeout=240)
                assert kept.returncode == 0, kept.stderr
                self.inside: dict[str, str] = json.loads(kept.stdout)
                self.heard = outside.heard() - before
                assert outside.process.poll() is None
            finally:
                outside.close()


@pytest.fixture(scope="module", params=WHO)
def tried(request: pytest.FixtureRequest) -> Tried:
    return Tried(request.param)


@pytest.mark.parametrize("way", waysout.WAYS)
def test_no_way_leads_out(tried: Tried, way: str) -> None:
    assert tried.inside[way] != "out"
    assert tried.inside[way] != "killed"
    assert not tried.inside[way].startswith(("KeyError: 'FACTS", "TypeError", "NameError", "AttributeError"))


def test_nobody_outside_has_heard_anything(tried: Tried) -> None:
    assert tried.heard == 0


def test_every_way_leads_out_where_nothing_keeps_it(tried: Tried) -> None:
    shut = {way: said for way, said in tried.outside.items() if said != "out" and way not in KERNELS_OWN}
    assert shut == {}


# -- what works inside ---------------------------------------------------------------------------------------------------


def test_the_proxy_is_reached_with_a_credential_that_the_program_never_has(both: Ground) -> None:
    script = "curl -sS http://example.com/a; env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; true"
    done = both.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "through the door" in done.stdout
    assert SECRET not in done.stdout
    assert "WARDLINE" not in done.stdout
    assert len(both.door.heads) == 1


def test_a_credential_that_the_program_sends_is_replaced(ground: Ground) -> None:
    done = ground.run("curl", "-sS", "-x", "http://planner:guess@127.0.0.1:17480", "http://example.com/")
    assert done.stdout == "through the door\n"
    assert ground.door.heads[0].lower().count(b"proxy-authorization:") == 1


def test_the_session_reaches_the_door(ground: Ground) -> None:
    done = ground.run("curl", "-sS", "http://example.com/", options=["--contain", "--session", "s-1"])
    assert done.stdout == "through the door\n"
    line = next(line for line in ground.door.heads[0].split(b"\r\n") if line.startswith(b"Proxy-Authorization"))
    assert base64.b64decode(line.split()[-1]).decode() == f"researcher+s-1:{SECRET}"


def test_when_no_door_answers_the_relay_says_so(ground: Ground) -> None:
    ground.door.close()
    done = ground.run("curl", "-sS", "-o", "answer", "-w", "%{http_code}", "http://example.com/")
    assert done.stdout == "503"
    assert json.loads((ground.work / "answer").read_text())["reason"] == "away"


def test_the_relay_turns_to_another_door_when_the_first_is_gone(ground: Ground) -> None:
    ground.door.close()
    ground.home.door_socket("door-1").unlink()
    second = StandIn(ground.home, name="door-2")
    ground.give()
    try:
        done = ground.run("curl", "-sS", "http://example.com/")
        assert done.stdout == "through the door\n"
    finally:
        second.close()


def test_the_working_folder_can_be_written_and_the_rest_not(both: Ground) -> None:
    script = "echo hello > made; echo hello > /tmp/made && echo hello > ~/made && ls -a ~ && ! touch /usr/made /etc/made /made"
    done = both.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert (both.work / "made").read_text() == "hello\n"
    assert (both.work / "made").stat().st_uid == both.uid
    assert done.stdout.split() == [".", "..", "made"]
    assert not (both.user_home / "made").exists()


def test_a_folder_can_be_bound_to_read_or_to_write(ground: Ground) -> None:
    for name in ("read", "write"):
        (ground.top / name).mkdir()
        (ground.top / name / "there").write_text(name)
    (ground.work / "protected").mkdir()
    ground.give()
    options = ["--contain", "--ro-bind", str(ground.top / "read"), "--bind", "../write", "--ro-bind", "protected"]
    script = "cat ../read/there ../write/there; echo more > ../write/more; ! touch ../read/more protected/more"
    done = ground.run("sh", "-c", script, options=options)
    assert (done.returncode, done.stdout) == (0, "readwrite"), done.stderr
    assert (ground.top / "write" / "more").read_text() == "more\n"


def test_the_home_inside_the_working_folder_is_covered(both: Ground) -> None:
    inner = Home(both.work / "state" / "wardline")
    inner.root.parent.mkdir()
    shutil.copytree(both.home.root, inner.root, ignore=shutil.ignore_patterns("*.sock"))
    door = StandIn(inner)
    both.give()
    try:
        script = "ls -A state/wardline; curl -sS http://example.com/; mv state moved; ls -A moved/wardline"
        done = both.run("sh", "-c", script, options=["--contain", "--home", str(inner.root)])
        assert (done.returncode, done.stdout) == (0, "through the door\n"), done.stderr
    finally:
        door.close()


def test_loopback_inside_is_the_programs_own(ground: Ground) -> None:
    script = (
        "import socket, threading; s = socket.create_server(('127.0.0.1', 8080)); "
        "c = socket.create_connection(('127.0.0.1', 8080)); a, _ = s.accept(); c.send(b'x'); print(a.recv(1))"
    )
    assert ground.python("-c", script).stdout == "b'x'\n"


def test_a_terminal_of_its_own_can_be_opened(ground: Ground) -> None:
    done = ground.python("-c", "import os; a, b = os.openpty(); print(os.ttyname(b))")
    assert done.stdout == "/dev/pts/0\n", done.stderr


# -- as if it were not there ---------------------------------------------------------------------------------------------

MODES = [("--contain",), ()]

C_LIBRARYS = 3 << 31
"""Signals 32 and 33, as a mask: nobody but the C library can set them, and whoever started the tests may ignore them."""


@pytest.mark.parametrize("options", MODES, ids=["contained", "plain"])
def test_exit_codes_are_the_programs_own(ground: Ground, options: tuple[str, ...]) -> None:
    for script, code in (("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)):
        done = ground.run("sh", "-c", script, options=options)
        expected = code if options or code < 128 or code == 255 else 128 - code
        assert (done.returncode, done.stderr) == (expected, ""), script


@pytest.mark.parametrize("options", MODES, ids=["contained", "plain"])
def test_input_output_umask_and_signals_are_left_alone(ground: Ground, options: tuple[str, ...]) -> None:
    script = "umask; grep -E 'SigBlk|SigIgn' /proc/self/status; cat; echo error >&2"
    process = ground.popen("sh", "-c", script, options=options, stdin=subprocess.PIPE, umask=0o027)
    out, errors = process.communicate("line\n" * 100_000, timeout=60)
    assert errors == "error\n"
    umask, blocked, ignored, rest = out.split("\n", 3)
    assert umask == "0027"
    assert rest == "line\n" * 100_000
    assert int(blocked.split()[1], 16) == 0
    assert not int(ignored.split()[1], 16) & ~C_LIBRARYS


@pytest.mark.parametrize("options", MODES, ids=["contained", "plain"])
def test_a_pipe_ends_when_its_reader_does(ground: Ground, options: tuple[str, ...]) -> None:
    process = ground.popen("yes", options=options)
    assert process.stdout is not None
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        said = errors.read()
    # by the signal, or by the error where whoever started the tests has that signal ignored; it never writes on for nobody
    code = process.wait(30)
    assert code == (128 + signal.SIGPIPE if options else -signal.SIGPIPE) or (code == 1 and "roken pipe" in said), (code, said)


@pytest.mark.parametrize("options", MODES, ids=["contained", "plain"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_program(ground: Ground, options: tuple[str, ...], number: signal.Signals) -> None:
    script = f"trap 'echo got it; exit 3' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    process = ground.popen("sh", "-c", script, options=options)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (3, "got it\n")


def test_a_program_that_is_not_there_is_named(ground: Ground) -> None:
    (ground.top / "tools").mkdir()
    tool = ground.top / "tools" / "tool"
    tool.write_text("#!/bin/sh\necho ran\n")
    tool.chmod(0o755)
    (ground.work / "plain").write_text("no program")
    ground.give()
    env = ground.environment(PATH=f"{tool.parent}:{os.environ['PATH']}")
    for command, code, said in (
        ("no-such-program", 127, "wardline: `no-such-program`: no such file or directory\n"),
        ("./plain", 126, "wardline: `./plain`: permission denied\n"),
        ("tool", 127, f"wardline: `tool` is `{tool}`, which is not there inside; give --ro-bind with its folder\n"),
    ):
        done = ground.run(command, env=env)
        assert (done.returncode, done.stderr) == (code, said)
    done = ground.run("tool", env=env, options=["--contain", "--ro-bind", str(tool.parent)])
    assert (done.returncode, done.stdout) == (0, "ran\n")


# -- ends ----------------------------------------------------------------------------------------------------------------


def test_everything_ends_with_the_program(ground: Ground) -> None:
    mark = f"98{os.getpid()}"
    done = ground.run("sh", "-c", f"setsid sleep {mark} & (trap '' TERM HUP; sleep {mark}) & sleep 0.2; exit 4")
    assert done.returncode == 4
    wait_until(lambda: not running(mark), 5, "what the program left behind is gone")


@pytest.mark.parametrize("victim", ["run", "relay"])
def test_what_is_killed_leaves_no_way_out(both: Ground, victim: str) -> None:
    mark = f"97{os.getpid()}"
    script = f"echo ready; sleep 1; curl -sS -m 5 http://example.com/; echo $?; exec sleep {mark}"
    process = both.popen("sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = family(process.pid)
    assert len([pid for pid, words in started.items() if "pipeline.cli.contain.relay" in words]) == 1
    if victim == "run":
        process.kill()
        process.wait(10)
        wait_until(lambda: not any(is_alive(pid) for pid in started), 5, lambda: f"all of {started} are gone")
    else:
        os.kill(next(pid for pid, words in started.items() if "pipeline.cli.contain.relay" in words), signal.SIGKILL)
        assert process.stdout.readline() == "7\n"
        process.terminate()
        assert process.wait(10) == 143
        assert process.stderr is not None
        assert "the relay has ended" in process.stderr.read()
    process.communicate()


def test_the_relay_is_out_of_reach_and_keeps_the_credential_to_itself(both: Ground) -> None:
    script = (
        "import os, sys, time, ctypes\n"
        "while not os.path.exists('relay'): time.sleep(0.01)\n"
        "pid = int(open('relay').read())\n"
        "print(os.path.exists(f'/proc/{pid}'), ctypes.CDLL(None).ptrace(0x4206, pid, None, None))\n"
        "try: os.kill(pid, 0)\n"
        "except OSError as fault: print(type(fault).__name__)\n"
    )
    python, options = both.python_inside()
    process = both.popen(python, "-c", script, options=["--contain", *options])
    found = wait_until(lambda: [p for p, words in family(process.pid).items() if "contain.relay" in words], 20, "it runs")
    assert SECRET not in " ".join(family(process.pid).values())
    reading = [*both.as_user(), "sh", "-c", f"cat /proc/{found[0]}/environ /proc/{found[0]}/mem"]

    def refused() -> bool:
        read = subprocess.run(reading, capture_output=True, check=False)
        assert read.stdout == b""
        return read.stderr.count(b"Permission denied") == 2

    if both.uid == ORDINARY_ID:  # nobody keeps root from it outside
        wait_until(refused, 20, "it has closed itself, which it does before it is told the credential")
    (both.work / "relay.new").write_text(str(found[0]))
    (both.work / "relay.new").rename(both.work / "relay")
    out, errors = process.communicate(timeout=30)
    assert (out, errors) == ("False -1\nProcessLookupError\n", "")


NOT_ALLOWED = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\""


def test_where_namespaces_are_not_allowed_the_setting_is_named(ground: Ground) -> None:
    """In a user namespace that allows no more of them, which is what a host that forbids them looks like."""
    words = ground.words("touch", "ran")
    front = words[: words.index(COMMAND[0], 1)] if ground.as_user() else []
    back = words[len(front) :]
    done = subprocess.run(
        [*front, "unshare", "-U", "-r", "sh", "-c", NOT_ALLOWED, "sh", *back], cwd=ground.work, env=ground.environment(),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "wardline: --contain: user.max_user_namespaces is 0 here, so no user namespace can be made: set it with sysctl; "
        "see docs/contain.md\n"
    )
    assert not (ground.work / "ran").exists()


# -- what is inherited ---------------------------------------------------------------------------------------------------


def test_a_standard_descriptor_that_leads_out_is_refused(ground: Ground) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    connected = socket.create_connection(listener.getsockname())
    served = Answering(socket.AF_UNIX, str(ground.top / "s.sock"))
    unix = socket.socket(socket.AF_UNIX)
    unix.connect(str(ground.top / "s.sock"))
    space = os.open("/proc/self/ns/net", os.O_RDONLY)
    path = os.open("/etc/passwd", os.O_PATH)
    try:
        for handle, said in (
            (connected.fileno(), "is a network connection"), (listener.fileno(), "is a network connection"),
            (unix.fileno(), f"is a connection to the socket `{ground.top}/s.sock`"), (space, "is `net:["),
            (path, "is a handle of `/etc/passwd`"),
        ):  # fmt: skip
            done = ground.run("true", stdout=handle)
            assert done.returncode == 2
            assert f"wardline: stdout {said}" in done.stderr
            assert done.stderr.count("\n") == 1
    finally:
        for one in (listener, connected, unix, served):
            one.close()
        for handle in (space, path):
            os.close(handle)


def test_a_pair_of_nameless_sockets_is_as_good_as_a_pipe(ground: Ground) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"hello")
        ours.shutdown(socket.SHUT_WR)
        done = ground.run("cat", stdin=theirs.fileno())
    assert (done.returncode, done.stdout) == (0, "hello")


# -- the terminal --------------------------------------------------------------------------------------------------------


def on_a_terminal(ground: Ground, *command: str, options: Sequence[str] = ("--contain",)) -> tuple[int, int]:
    """Start a run on a terminal of its own; returns its pid and our end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ground.work)
        words = ground.words(*command, options=options)
        os.execvpe(words[0], words, ground.environment())
    return pid, terminal


def read_until(terminal: int, text: bytes, seconds: float = 20) -> bytes:
    """What a terminal shows, up to a text."""
    said, deadline = b"", time.monotonic() + seconds
    while text not in said:
        assert time.monotonic() < deadline, said
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                said += os.read(terminal, 4096)
            except OSError:
                raise AssertionError(said) from None
    return said


@pytest.mark.parametrize("options", MODES, ids=["contained", "plain"])
def test_ctrl_c_interrupts_the_program_once(ground: Ground, options: tuple[str, ...]) -> None:
    traps = "trap 'n=$((n+1)); echo interrupted $n' INT; trap 'echo end $n; exit 5' TERM"
    script = f"n=0; {traps}; tty; while :; do sleep 0.05; done"
    pid, terminal = on_a_terminal(ground, "sh", "-c", script, options=options)
    try:
        read_until(terminal, b"not a tty\r\n" if options else b"/dev/pts/")
        os.write(terminal, b"\x03")
        read_until(terminal, b"interrupted 1\r\n")
        time.sleep(0.3)
        os.kill(pid, signal.SIGTERM)
        read_until(terminal, b"end 1\r\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    finally:
        os.close(terminal)


def test_a_program_cannot_type_into_the_terminal(ground: Ground) -> None:
    """TIOCSTI: what it types, the user's shell would read as a command."""
    script = "import fcntl; print('begin'); [fcntl.ioctl(0, 0x5412, bytes([c])) for c in b'typed']"
    python, options = ground.python_inside()
    pid, terminal = on_a_terminal(ground, python, "-c", script, options=["--contain", *options])
    try:
        said = read_until(terminal, b"Operation not permitted")
        assert b"typed" not in said.partition(b"begin")[2].replace(b"b'typed'", b"")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    finally:
        os.close(terminal)
