"""The parts of a containment, each alone: what is shown, inherited and filtered, what the relay writes, what is said."""

import errno
import os
import socket
import struct
from pathlib import Path

import pytest

from pipeline.cli.contain import handles, relay, syscalls, view, why
from schemas.errors import OperatorFault

# -- the view ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A user's home folder with a project in it."""
    made = tmp_path / "user"
    (made / "project" / "deep").mkdir(parents=True)
    (made / ".ssh").mkdir()
    return made


def steps_of(user: Path, cwd: Path | None = None, *, bind: tuple[str, ...] = (), ro_bind: tuple[str, ...] = (),
             hidden: tuple[Path, ...] = ()) -> list[view.Step]:  # fmt: skip
    return view.plan(cwd=str(cwd or user / "project"), user_home=str(user), bind=bind, ro_bind=ro_bind, hidden=hidden)


def test_parents_are_put_in_place_before_what_lies_in_them(user: Path) -> None:
    steps = steps_of(user, ro_bind=(str(user / "project" / "deep"),))
    order = [step.path for step in steps]
    assert order.index("/tmp") < order.index(str(user)) < order.index(str(user / "project")) < order.index(
        str(user / "project" / "deep")
    )


def test_only_what_is_named_is_shown(user: Path) -> None:
    steps = steps_of(user)
    for path, shown in (
        (user / "project" / "x", True), (user / ".ssh", False), (user, False), (user.parent / "other", False),
        ("/usr/bin/env", True), ("/usrlocal", False), ("/run/docker.sock", False), ("/var/lib", False), ("/dev/null", True),
    ):  # fmt: skip
        assert view.shows(steps, str(path)) == shown, path


@pytest.mark.parametrize(("path", "said"), [
    ("/", "would show all of `/etc`"), ("/tmp", "would show all of `/tmp`"), ("/run/x", "no such"),
    ("/proc", "lies in `/proc`"),
    ("/dev/shm", "lies in `/dev`"), ("/dev/null", "is neither a folder nor a file"), ("/var", "would show all of `/var`"),
    ("USER", "would show all of"), ("USER/..", "would show all of"), ("USER/link", "would show all of `/etc`"),
    ("USER/socket", "is neither a folder nor a file"), ("USER/nowhere", "no such file or directory"),
])  # fmt: skip
@pytest.mark.parametrize("option", ["cwd", "bind", "ro_bind"])
def test_what_shows_too_much_is_refused(user: Path, option: str, path: str, said: str) -> None:
    (user / "link").symlink_to("/")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(user / "socket"))
        real = path.replace("USER", str(user))
        cwd = Path(real) if option == "cwd" else None
        bound = {option: (real,)} if cwd is None else {}
        with pytest.raises(OperatorFault) as caught:
            steps_of(user, cwd, **bound)
    assert said.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_a_hidden_folder_is_covered_where_it_is_shown_and_refused_as_the_working_folder(user: Path) -> None:
    home, key = user / "project" / "state", user / "key"
    home.mkdir()
    key.touch()
    covered = [step.path for step in steps_of(user, hidden=(home, key)) if step.what == "hide"]
    assert str(home) in covered
    assert str(key) not in covered, "it is not shown at all"
    (home / "below").mkdir()
    with pytest.raises(OperatorFault, match="which no contained program may see"):
        steps_of(user, home / "below", hidden=(home,))


def test_every_socket_in_what_is_shown_is_covered(user: Path) -> None:
    paths = [user / "project" / "deep" / "a.sock", user / "project" / "b.sock", user / "c.sock"]
    made = []
    for path in paths:
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(path))
        made.append(one)
    (user / "project" / "loop").symlink_to("..")
    try:
        covered = [step.path for step in steps_of(user) if step.what == "hide"]
    finally:
        for one in made:
            one.close()
    assert {str(path) for path in paths} & set(covered) == {str(path) for path in paths[:2]}


def test_a_folder_with_too_many_files_is_refused(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "ENTRIES_MAX", 10)
    for number in range(12):
        (user / "project" / f"f{number}").touch()
    with pytest.raises(OperatorFault, match="has more than 10 files"):
        steps_of(user)


# -- what is inherited ---------------------------------------------------------------------------------------------------


def wrong(number: int) -> str:
    try:
        return handles._wrong(number)
    finally:
        os.close(number)


def test_what_a_program_may_inherit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ends = os.pipe()
    ours, theirs = os.openpty()
    pair = socket.socketpair()
    for number in (*ends, theirs, ours, pair[0].detach(), pair[1].detach(), os.open(tmp_path / "file", os.O_RDWR),
                   os.open("/dev/null", os.O_RDWR), os.memfd_create("m")):  # fmt: skip
        assert wrong(number) == ""


def test_what_a_program_may_not_inherit(tmp_path: Path) -> None:
    assert wrong(os.open("/", os.O_RDONLY)) == "the folder `/`"
    assert wrong(os.open("/etc/passwd", os.O_PATH)) == "a handle of `/etc/passwd`"
    assert wrong(os.pidfd_open(os.getpid())).startswith("`anon_inode:")
    assert wrong(os.open("/proc/self/ns/net", os.O_RDONLY)).startswith("`net:[")
    assert wrong(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()) == "a network connection"
    assert wrong(socket.socket(socket.AF_UNIX).detach()) == "an unconnected socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        assert wrong(os.dup(server.fileno())) == "a listening socket"
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "s"))
        accepted, _ = server.accept()
        for one in (client, accepted):
            assert wrong(one.detach()).startswith(f"a connection to the socket `{str(tmp_path)[:40]}")


# -- the filter ----------------------------------------------------------------------------------------------------------

ALLOW, ABSENT, REFUSED, FAMILY = 0x7FFF0000, 0x50000 | errno.ENOSYS, 0x50000 | errno.EPERM, 0x50000 | errno.EAFNOSUPPORT


def run(program: bytes, machine: int, number: int, *arguments: int) -> int:
    """An interpreter of classic BPF, as far as the filter uses it: too simple to be wrong."""
    data = struct.pack("<IIQ6Q", number, machine, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", program))
    at, held = 0, 0
    while True:
        operation, true, false, value = code[at]
        at += 1
        if operation == 0x20:
            held = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x06:
            return int(value)
        else:
            hit = held == value if operation == 0x15 else held >= value
            at += true if hit else false


@pytest.mark.parametrize("name", syscalls.MACHINES)
def test_the_filter_answers_each_call_as_the_table_says(name: str) -> None:
    machine, program = syscalls.MACHINES[name], syscalls.program(name)
    for family in range(64):
        for number in (machine.socket, machine.socketpair):
            expected = ALLOW if family in (1, 2, 10, 16) else FAMILY
            assert run(program, machine.audit, number, family) == expected
            assert run(program, machine.audit, number, family | 7 << 32) == expected, "the kernel takes 32 bits"
    requests = {0x5412: REFUSED, 0x541C: REFUSED, 0x5412 | 1 << 32: REFUSED, 0x5401: ALLOW, 0x5413: ALLOW}
    for request, expected in requests.items():
        assert run(program, machine.audit, machine.ioctl, 0, request) == expected
    for number in range(1024):
        if number not in (machine.socket, machine.socketpair, machine.ioctl):
            expected = ABSENT if number in machine.absent else REFUSED if number in machine.refused else ALLOW
            assert run(program, machine.audit, number, 40, 0x5412) == expected, number


@pytest.mark.parametrize("name", syscalls.MACHINES)
def test_calls_of_another_architecture_are_not_there(name: str) -> None:
    machine, program = syscalls.MACHINES[name], syscalls.program(name)
    others = [0x40000003, 0x40000028, *(one.audit for key, one in syscalls.MACHINES.items() if key != name)]
    for audit in others:
        assert {run(program, audit, number, 2) for number in range(512)} == {ABSENT}
    assert {run(program, machine.audit, 0x40000000 | number, 2) for number in range(512)} == {ABSENT}


def test_a_machine_that_is_not_known_is_refused() -> None:
    with pytest.raises(OperatorFault, match="`riscv64` is no machine whose system calls are known, x86_64, aarch64 are"):
        syscalls.program("riscv64")


# -- the relay -----------------------------------------------------------------------------------------------------------

HEADS = {
    "a request gets the credential": (
        b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost: h\r\nProxy-Authorization: Basic eA==\r\nConnection: close\r\n\r\n",
    ),
    "its own credentials go, in whatever form": (
        b"GET http://h/ HTTP/1.1\r\nproxy-authorization: Basic a\r\nPROXY-Authorization : b\r\nA: b\r\n"
        b" Proxy-Authorization: c\r\nProxy-Authorization: d\r\n e\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nA: b\r\n Proxy-Authorization: c\r\nProxy-Authorization: Basic eA==\r\n"
        b"Connection: close\r\n\r\n",
    ),
    "what it says of its connection is ours to say": (
        b"GET http://h/ HTTP/1.1\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\nConnection: keep-alive, x-one\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nProxy-Authorization: Basic eA==\r\nConnection: x-one, close\r\n\r\n",
    ),
    "an upgrade stays one": (
        b"GET http://h/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nUpgrade: websocket\r\nProxy-Authorization: Basic eA==\r\n"
        b"Connection: Upgrade\r\n\r\n",
    ),
    "a head without fields has two": (
        b"CONNECT h:443 HTTP/1.1\r\n\r\n",
        b"CONNECT h:443 HTTP/1.1\r\nProxy-Authorization: Basic eA==\r\nConnection: close\r\n\r\n",
    ),
    "what is odd stays odd": (
        b"GET http://h/ HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost: h\nX: y\r\nProxy-Authorization: Basic eA==\r\nConnection: close\r\n\r\n",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_relay_rewrites_one_head(name: str) -> None:
    head, expected = HEADS[name]
    assert relay.rewrite(head, b"Basic eA==") == expected


# -- why not -------------------------------------------------------------------------------------------------------------

WHY = [
    ({"user/max_user_namespaces": 0}, "user namespace", errno.ENOSPC, "user.max_user_namespaces is 0 here"),
    ({"user/max_net_namespaces": 0}, "namespaces", errno.ENOSPC, "user.max_net_namespaces is 0 here"),
    ({"kernel/unprivileged_userns_clone": 0}, "user namespace", errno.EPERM, "kernel.unprivileged_userns_clone is 0"),
    ({"kernel/apparmor_restrict_unprivileged_userns": 1}, "namespaces", errno.EPERM, "AppArmor needs a profile"),
    ({"kernel/apparmor_restrict_unprivileged_userns": 1}, "private mounts", errno.EACCES, "AppArmor needs a profile"),
    ({}, "user namespace", errno.ENOSPC, "the limit of namespaces is reached"),
    ({}, "/proc", errno.EPERM, "a /proc of its own cannot be mounted"),
    ({}, "read /usr", errno.ENOSYS, "this kernel lacks the mount calls of Linux 5.12"),
    ({}, "write /x", errno.ENOENT, "`write /x` failed: no such file or directory"),
]


@pytest.mark.parametrize(("settings", "step", "number", "said"), WHY)
def test_what_stands_against_a_containment_is_named(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], step: str, number: int, said: str
) -> None:
    monkeypatch.setattr(why, "_setting", settings.get)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = why.why_not(step, number, "")
    assert said in found
    assert "\n" not in found


def test_a_seccomp_filter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(why, "_filtered", lambda: True)
    monkeypatch.setattr(why, "_setting", lambda _name: None)
    assert "a seccomp filter is over this process" in why.why_not("user namespace", errno.EPERM, "")
