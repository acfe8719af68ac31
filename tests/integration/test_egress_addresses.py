"""Where names lead: the address that was judged is the one that is dialled, and none of ours is, whoever says so."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcers.core.addresses import OwnSet, read_address
from enforcers.doors.egress import resolve
from enforcers.doors.egress.own import Own, is_local, read_pair
from enforcers.doors.egress.resolve import CACHED_S, SYSTEM_S, Resolver, Unreachable, parse_servers
from schemas.bundle import Rule
from schemas.config import Egress
from schemas.errors import OperatorFault
from schemas.process import write_run_file
from schemas.records import Kind, Outcome
from tests.support.dns import NameServer, say
from tests.support.hellos import real
from tests.support.tunneling import OPEN, RAW, MiniDoor, Origin, run

FORBID = (*RAW, Rule(id="not-there", forbid=True, resource=("==", 'Host::"secret.test:443"')))


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as server:
        yield server


async def refused(door: MiniDoor, target: str) -> str:
    """Ask for a tunnel that must be refused for its address; returns what the record says."""
    streams, _, head = await door.connect(target)
    assert head.startswith(b"HTTP/1.1 403 "), head
    answer = json.loads(await streams.read())
    said = door.last
    assert answer["reason"] == said.reason == "address"
    assert (said.kind, said.denied, said.outcome, said.address) == (Kind.EFFECT, True, Outcome.REFUSED, "")
    return said.error


LEADS_TO = {
    "loopback": (["127.0.0.1"], "loopback: 127.0.0.1:PORT"),
    "loopback elsewhere": (["127.8.9.10"], "loopback: 127.8.9.10:PORT"),
    "loopback 6": (["::1"], "loopback: [::1]:PORT"),
    "unspecified": (["0.0.0.0"], "unspecified: 0.0.0.0:PORT"),
    "unspecified 6": (["::"], "unspecified: [::]:PORT"),
    "private": (["10.0.0.1"], "private: 10.0.0.1:PORT"),
    "metadata": (["169.254.169.254"], "metadata: 169.254.169.254:PORT"),
    "metadata 6": (["fd00:ec2::254"], "metadata: [fd00:ec2::254]:PORT"),
    "link-local 6": (["fe80::1"], "link-local: [fe80::1]:PORT"),
    "unique local": (["fd12::1"], "private: [fd12::1]:PORT"),
    "mapped loopback": (["::ffff:127.0.0.1"], "ipv4-mapped: [::ffff:7f00:1]:PORT"),
    "mapped public": (["::ffff:8.8.8.8"], "ipv4-mapped: [::ffff:808:808]:PORT"),
    "compatible": (["::127.0.0.1"], "ipv4-compatible: [::7f00:1]:PORT"),
    "nat64 of loopback": (["64:ff9b::7f00:1"], "nat64 of a loopback address: [64:ff9b::7f00:1]:PORT"),
    "nat64 of metadata": (["64:ff9b::a9fe:a9fe"], "nat64 of a metadata address: [64:ff9b::a9fe:a9fe]:PORT"),
    "local nat64": (["64:ff9b:1::7f00:1"], "local nat64: [64:ff9b:1::7f00:1]:PORT"),
    "6to4": (["2002:7f00:1::1"], "6to4: [2002:7f00:1::1]:PORT"),
    "teredo": (["2001::1"], "teredo: [2001::1]:PORT"),
    "multicast": (["224.0.0.1"], "multicast: 224.0.0.1:PORT"),
    "broadcast": (["255.255.255.255"], "broadcast: 255.255.255.255:PORT"),
    "shared": (["100.64.0.1"], "carrier-grade nat: 100.64.0.1:PORT"),
    "both families": (["10.0.0.1", "::1"], "private: 10.0.0.1:PORT"),
}


@pytest.mark.parametrize("which", LEADS_TO)
@pytest.mark.parametrize("alias", [False, True], ids=["at once", "by aliases"])
def test_a_name_that_leads_where_nobody_may_go_is_refused(tmp_path: Path, names: NameServer, which: str, alias: bool) -> None:
    addresses, error = LEADS_TO[which]
    names["trap.test"] = say(*addresses, aliases=("one.public.test", "two.public.test") if alias else ())

    async def test() -> None:
        async with Origin() as origin, MiniDoor(tmp_path, RAW, allow_addresses=(), dns_servers=(names.address,)) as door:
            assert await refused(door, f"trap.test:{origin.port}") == error.replace("PORT", str(origin.port))
            door.dialer.tls_port = origin.port
            streams, _, head = await door.connect("trap.test:443", real("trap.test"))  # here the 200 is out already
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await streams.read() == bytes.fromhex("15030300020231")
            assert (await door.until_over(2)).error == error.replace("PORT", str(origin.port))
            assert origin.connections == 0

    run(test())


def test_a_name_that_is_public_first_and_loopback_second_reaches_loopback_never(tmp_path: Path, names: NameServer) -> None:
    """127.0.0.2 stands for a public address: the one that may be dialled."""
    names["rebind.test"] = [say("127.0.0.2", ttl=0), say("127.0.0.1", ttl=0)]

    async def test() -> None:
        async with (
            Origin(host="127.0.0.2") as public, Origin(port=public.port) as inside,
            MiniDoor(tmp_path, RAW, allow_addresses=("127.0.0.2",), dns_servers=(names.address,)) as door,
        ):  # fmt: skip
            streams, writer, head = await door.connect(f"rebind.test:{public.port}", b"x")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await streams.readexactly(1) == b"x"
            assert names.lookups("rebind.test") == 1, "one lookup for a dial, and the address that it gave"
            writer.close()
            assert (await door.until_over()).address == f"127.0.0.2:{public.port}"
            assert await refused(door, f"rebind.test:{public.port}") == f"loopback: 127.0.0.1:{public.port}"
            assert names.lookups("rebind.test") == 2
            assert (public.connections, inside.connections) == (1, 0)

    run(test())


def test_of_several_addresses_only_those_that_may_be_are_dialled(tmp_path: Path, names: NameServer) -> None:
    names["mixed.test"] = say("127.0.0.1", "127.0.0.2")

    async def test() -> None:
        async with (
            Origin(host="127.0.0.2") as public, Origin(port=public.port) as inside,
            MiniDoor(tmp_path, RAW, allow_addresses=("127.0.0.2",), dns_servers=(names.address,)) as door,
        ):  # fmt: skip
            streams, writer, _ = await door.connect(f"mixed.test:{public.port}", b"x")
            assert await streams.readexactly(1) == b"x"
            writer.close()
            assert (await door.until_over()).address == f"127.0.0.2:{public.port}"
            closed = public.port
            await public.__aexit__()
            assert await refused(door, f"mixed.test:{closed}") == f"loopback: 127.0.0.1:{closed}"
            assert inside.connections == 0

    run(test())


def test_a_name_that_policy_refuses_is_never_looked_up(tmp_path: Path, names: NameServer) -> None:
    names["secret.test"] = say("127.0.0.1")

    async def test() -> None:
        async with MiniDoor(tmp_path, FORBID, dns_servers=(names.address,)) as door:
            for first in (b"", real("secret.test")):
                _, _, head = await door.connect("secret.test:443", first)
                assert head.startswith(b"HTTP/1.1 403 ")
            assert [one.kind for one in door.said] == [Kind.DECISION] * 2
            assert door.resolver.lookups == 0
            assert not names.seen

    run(test())


# -- our own ---------------------------------------------------------------------------------------------------------


def test_our_own_listeners_are_never_dialled_though_all_addresses_are_allowed(tmp_path: Path, names: NameServer) -> None:
    config = {"allow_addresses": ("0.0.0.0/0", "::/0"), "dns_servers": (names.address,)}
    names["innocent.test"] = say("127.0.0.1")
    names["also.test"] = say("127.0.0.7")
    names["mapped.test"] = say("::ffff:127.0.0.1")
    names["any.test"] = say("0.0.0.0")
    names["kafka.test"] = say("127.0.0.1")

    async def test() -> None:
        async with (
            Origin() as store, Origin(host="") as wide, Origin() as kafka,
            MiniDoor(tmp_path, RAW, (f"kafka.test:{kafka.port}", "[::1]:9092"), **config) as door,
        ):  # fmt: skip
            streams, writer, head = await door.connect(f"innocent.test:{store.port}", b"x")
            assert head.startswith(b"HTTP/1.1 200 "), "nothing says yet that it is ours"
            assert await streams.readexactly(1) == b"x"
            writer.close()
            await door.until_over()
            run_file = door.folder / "run" / "store.json"
            listens = {"address": f"127.0.0.1:{store.port}", "metrics": f"0.0.0.0:{wide.port}"}
            write_run_file(run_file, {"name": "store", "pid": 1, **listens})
            for host, port in (
                ("innocent.test", store.port), ("127.0.0.1", store.port), ("mapped.test", store.port), ("any.test", store.port),
                ("innocent.test", wide.port), ("also.test", wide.port), ("any.test", wide.port), ("[::1]", wide.port),
            ):  # fmt: skip
                error = await refused(door, f"{host}:{port}")
                assert error.startswith("wardline's own listener: "), (host, port, error)
            before = door.resolver.lookups
            assert await refused(door, f"kafka.test:{kafka.port}") == f"`kafka.test:{kafka.port}` is wardline's own listener"
            assert await refused(door, f"KAFKA.test:{kafka.port}") == f"`kafka.test:{kafka.port}` is wardline's own listener"
            assert door.resolver.lookups == before
            assert (await refused(door, "[::1]:9092")).endswith("is wardline's own listener")
            await door.own.begin(door.resolver)
            assert (await refused(door, f"innocent.test:{kafka.port}")) == f"wardline's own listener: 127.0.0.1:{kafka.port}"
            assert (store.connections, wide.connections, kafka.connections) == (1, 0, 0)

    run(test())


def test_a_door_does_not_wait_long_for_names_that_lead_nowhere(tmp_path: Path, names: NameServer) -> None:
    names["mute.test"] = say(silent=("A", "AAAA"))
    names["store.test"] = say("10.0.0.7")

    async def test() -> None:
        own, loop = Own(tmp_path, ["mute.test:8123", "nowhere.test:1", "store.test:8123"]), asyncio.get_running_loop()
        begun = loop.time()
        await own.begin(resolver(names, dns_ms=5_000))
        assert 0.9 < loop.time() - begun < 2
        assert own.is_named("mute.test", 8123)
        assert own.current.holds(read_address("10.0.0.7"), 8123)  # type: ignore[arg-type]

    run(test())


def test_an_ipv6_address_that_is_allowed_is_dialled(tmp_path: Path, names: NameServer) -> None:
    names["six.test"] = say("::1")

    async def test() -> None:
        async with (
            Origin(host="::1") as origin,
            MiniDoor(tmp_path, RAW, allow_addresses=("::1",), dns_servers=(names.address,)) as door,
        ):  # fmt: skip
            for number, host in enumerate(("[::1]", "[0:0:0::1]", "six.test")):
                streams, writer, head = await door.connect(f"{host}:{origin.port}", b"x")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await streams.readexactly(1) == b"x"
                writer.close()
                assert (await door.until_over(number + 1)).address == f"[::1]:{origin.port}"

    run(test())


def test_a_run_file_that_cannot_be_read_counts_as_it_did(tmp_path: Path) -> None:
    here, file = tmp_path / "run", tmp_path / "run" / "work-1.json"
    here.mkdir()
    (here / "long.json").write_bytes(b" " * (2 << 20))
    (here / "odd.json").write_text("[]")
    (here / "control.json").write_text(json.dumps({"name": "control", "pid": 1, "address": "/run/control.sock", "metrics": ""}))
    write_run_file(file, {"name": "work-1", "pid": 1, "address": "127.0.0.1:1234", "metrics": "127.0.0.1:1235,localhost:1236"})
    own = Own(here, ["not a pair", "http://x", "10.0.0.1:9092"])

    def of(text: str, port: int) -> bool:
        address = read_address(text)
        assert address is not None
        return own.refresh().holds(address, port)

    ours = [("127.0.0.1", 1234), ("127.0.0.1", 1235), ("127.0.0.1", 1236), ("::1", 1236), ("10.0.0.1", 9092)]
    assert all(of(*one) for one in ours)
    file.write_text("{")
    assert all(of(*one) for one in ours)
    file.unlink()
    assert [of(*one) for one in ours] == [False] * 4 + [True]


def test_what_the_kernel_calls_local_is_local() -> None:
    for text in ("127.0.0.1", "127.3.4.5", "::1", "0.0.0.0", "8.8.8.8", "2a00::1"):
        address = read_address(text)
        assert address is not None
        assert is_local(address) is (text not in ("8.8.8.8", "2a00::1")), text
    everywhere = OwnSet(everywhere=frozenset({80}), is_local=is_local)
    assert everywhere.holds(read_address("127.3.4.5"), 80)  # type: ignore[arg-type]
    assert not everywhere.holds(read_address("8.8.8.8"), 80)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "pair"), [
    ("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:80", ("::1", 80)), ("Kafka.Example.:9092", ("kafka.example", 9092)),
    (":80", ("0.0.0.0", 80)), ("*:80", ("0.0.0.0", 80)), ("/run/x.sock", None), ("", None), ("x:0", None), ("x:65536", None),
    ("x:8o", None), ("x:\u0661", None),
])  # fmt: skip
def test_a_listener_is_read_from_a_text(text: str, pair: tuple[str, int] | None) -> None:
    assert read_pair(text) == pair


# -- names -----------------------------------------------------------------------------------------------------------


def resolver(names: NameServer, **config: int) -> Resolver:
    return Resolver(Egress(dns_servers=(names.address,), **{"dns_ms": 1_000, **config}))  # type: ignore[arg-type]


async def texts(of: Resolver, host: str) -> list[str]:
    return [str(address) for address in await of.lookup(host)]


async def code(of: Resolver, host: str) -> str:
    with pytest.raises(Unreachable) as fault:
        await of.lookup(host)
    assert "\n" not in str(fault.value)
    return fault.value.code


def test_an_answer_is_kept_as_long_as_it_says_and_no_longer(names: NameServer) -> None:
    names["keep.test"] = [say("1.1.1.1", "2a00::1", ttl=1), say("1.1.1.2", ttl=1)]
    names["none.test"] = [say("1.1.1.1", ttl=0), say("1.1.1.2")]
    names["chain.test"] = say("1.1.1.1", ttl=5, aliases=("a.test", "b.test"))

    async def test() -> None:
        one = resolver(names)
        assert [await texts(one, "keep.test") for _ in range(3)] == [["1.1.1.1", "2a00::1"]] * 3
        assert names.lookups("keep.test") == 1
        await asyncio.sleep(1.1)
        assert await texts(one, "keep.test") == ["1.1.1.2"]
        assert [await texts(one, "none.test") for _ in range(2)] == [["1.1.1.1"], ["1.1.1.2"]]
        assert await texts(one, "chain.test") == ["1.1.1.1"]
        assert one.lookups == 5

    run(test())


def test_those_who_wait_for_a_name_wait_for_one_lookup(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    names["many.test"] = say("1.1.1.1", ttl=0)
    names["mute.test"] = say(silent=("A", "AAAA"))
    monkeypatch.setattr(resolve, "LOOKUPS_MAX", 2)
    monkeypatch.setattr(resolve, "CACHED_MAX", 3)

    async def test() -> None:
        one = resolver(names, dns_ms=300)
        assert await asyncio.gather(*(texts(one, "many.test") for _ in range(50))) == [["1.1.1.1"]] * 50
        assert names.lookups("many.test") == 1
        waiting = [asyncio.ensure_future(code(one, host)) for host in ("mute.test", "mute.test", "mute2.test")]
        names["mute2.test"] = say(silent=("A", "AAAA"))
        await asyncio.sleep(0.05)
        assert await code(one, "many.test") == "dns"  # two are looked up already
        assert await asyncio.gather(*waiting) == ["timeout"] * 3
        await asyncio.sleep(0.1)  # they were given up; now they have ended
        for number in range(5):
            names[f"n{number}.test"] = say("1.1.1.1")
            await one.lookup(f"n{number}.test")
        assert [one.known(f"n{number}.test") is not None for number in range(5)] == [False, False, True, True, True]

    run(test())


def test_what_a_name_server_may_say(names: NameServer) -> None:
    names["cut.test"] = say(*(f"9.9.9.{number}" for number in range(40)), cut=True)
    names["half.test"] = say("1.1.1.1", silent=("AAAA",))
    names["six.test"] = say("2a00::1", silent=("A",))
    names["empty.test"] = say()
    names["broken.test"] = say(rcode=2)
    names["mute.test"] = say(silent=("A", "AAAA"))

    async def test() -> None:
        one = resolver(names)
        assert len(await one.lookup("cut.test")) == 16
        assert names.by_tcp["cut.test", "A"] == 1
        assert await texts(one, "half.test") == ["1.1.1.1"]
        assert await texts(one, "six.test") == ["2a00::1"]
        for host, why in (
            ("empty.test", "dns"), ("nowhere.test", "dns"), ("broken.test", "dns"), ("mute.test", "timeout"), ("", "dns"),
            ("a..b", "dns"), ("a" * 64 + ".test", "dns"),
        ):  # fmt: skip
            assert await code(one, host) == why, host
        before = one.lookups
        for host in ("127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1", "::1", "1.2.3.4.5", "a.0x"):
            assert await code(one, host) == "dns"
        assert one.lookups == before, "an address in whatever spelling is no name"

    run(test())


def test_the_system_is_asked_where_no_name_server_is_named() -> None:
    async def test() -> None:
        one = Resolver(Egress())
        assert "127.0.0.1" in await texts(one, "localhost")
        assert await code(one, "no-such-name.invalid") == "dns"
        assert one.known("localhost") is not None
        await asyncio.sleep(SYSTEM_S + 0.1)
        assert one.known("localhost") is None
        assert await asyncio.gather(*(texts(one, "localhost") for _ in range(20)))
        assert one.lookups == 3

    assert SYSTEM_S < CACHED_S
    run(test())


@pytest.mark.parametrize(("text", "server"), [
    ("192.0.2.53", ("192.0.2.53", 53)), ("192.0.2.53:5353", ("192.0.2.53", 5353)), ("2001:db8::53", ("2001:db8::53", 53)),
    ("[2001:db8::53]", ("2001:db8::53", 53)), ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
    ("ns.example.com", None), ("192.0.2.53:0", None), ("192.0.2.53:65536", None), ("", None), ("127.1", None), ("[::1", None),
])  # fmt: skip
def test_a_name_server_is_an_address(text: str, server: tuple[str, int] | None) -> None:
    if server is not None:
        assert parse_servers((text,)) == (server,)
        return
    with pytest.raises(OperatorFault, match=r"^egress.dns_servers: "):
        parse_servers((text,))


def test_opening_a_tunnel_needs_both_permits(tmp_path: Path) -> None:
    """`tcp:CONNECT` alone does not open one: the request itself is `http:CONNECT`."""

    async def test() -> None:
        async with MiniDoor(tmp_path, RAW[len(OPEN) :]) as door:
            _, _, head = await door.connect("origin.test:22")
            assert head.startswith(b"HTTP/1.1 403 ")
            assert [(one.kind, one.reason) for one in door.said] == [(Kind.DECISION, "no-permit")]

    run(test())
