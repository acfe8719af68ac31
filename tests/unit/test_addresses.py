"""Addresses: no spelling and no wrapping of an address that may not be dialled gets through, and public ones do."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcers.core.addresses import (
    OWN,
    Address,
    OwnSet,
    Rules,
    address_text,
    embedded,
    kind,
    parse_rules,
    read_address,
    refused,
)
from enforcers.core.http.head import parse_request
from enforcers.core.http.target import BadRequest, read_target
from schemas.errors import OperatorFault

NOBODY = OwnSet()
NONE = Rules()
EVERYTHING = parse_rules(("0.0.0.0/0", "::/0"))


def of(text: str) -> Address:
    found = read_address(text)
    assert found is not None
    return found


SPELLINGS = {
    "decimal": "2130706433", "decimal metadata": "2852039166", "octal": "0177.0.0.1", "octal whole": "017700000001",
    "hex": "0x7f.0.0.1", "hex whole": "0x7f000001", "hex metadata": "0xA9FEA9FE", "hex last": "127.0.0.0x1",
    "two parts": "127.1", "three parts": "127.0.1", "metadata in three parts": "169.254.43518", "one part": "0",
    "zeroes before": "0127.0.0.1", "many zeroes before": "127.0.0.001", "too large a part": "127.0.0.256",
    "beyond 32 bits": "4294967297", "five parts": "127.0.0.0.1", "a dot at its end": "127.0.0.1.",
    "two dots at its end": "127.0.0.1..", "an empty part": "127..0.1", "a sign": "-127.0.0.1", "mapped": "[::ffff:127.0.0.1]",
    "mapped in hex": "[::ffff:7f00:1]", "mapped whole": "[0:0:0:0:0:ffff:7f00:0001]", "mapped public": "[::ffff:8.8.8.8]",
    "mapped metadata": "[::ffff:a9fe:a9fe]", "mapped unspecified": "[::ffff:0:0]", "compatible": "[::127.0.0.1]",
    "compatible in hex": "[::7f00:1]", "translated": "[::ffff:0:7f00:1]", "nat64": "[64:ff9b::127.0.0.1]",
    "nat64 in hex": "[64:ff9b::7f00:1]", "nat64 metadata": "[64:ff9b::a9fe:a9fe]", "nat64 private": "[64:ff9b::a00:1]",
    "local nat64": "[64:ff9b:1::7f00:1]", "6to4": "[2002:7f00:1::1]", "6to4 public": "[2002:808:808::1]",
    "teredo": "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "isatap": "[2a00::5efe:7f00:1]",
    "isatap universal": "[2a00::200:5efe:a00:1]", "loopback": "127.0.0.1", "loopback elsewhere": "127.255.255.254",
    "loopback 6": "[::1]", "loopback 6 whole": "[0:0:0:0:0:0:0:1]", "unspecified": "0.0.0.0", "this network": "0.1.2.3",
    "unspecified 6": "[::]", "metadata": "169.254.169.254", "metadata 6": "[fd00:ec2::254]",
    "metadata in shared space": "100.100.100.200", "metadata with a public number": "168.63.129.16",
    "metadata of an assignment": "192.0.0.192", "link-local": "169.254.0.1", "link-local 6": "[fe80::1]",
    "link-local with a zone": "[fe80::1%eth0]", "link-local with an escaped zone": "[fe80::1%25eth0]",
    "private 10": "10.0.0.1", "private 172": "172.31.255.255", "private 192": "192.168.1.1", "unique local": "[fc00::1]",
    "unique local fd": "[fdff::1]", "site-local": "[fec0::1]", "shared": "100.64.0.1", "benchmark": "198.19.255.255",
    "benchmark 6": "[2001:2::1]", "documentation": "192.0.2.1", "documentation 6": "[2001:db8::1]",
    "new documentation 6": "[3fff::1]", "multicast": "224.0.0.251", "multicast 6": "[ff02::1]",
    "broadcast": "255.255.255.255", "reserved": "240.0.0.1", "reserved 6": "[4000::1]", "discard": "[100::1]",
    "orchid": "[2001:10::1]", "segment routing": "[5f00::1]", "6to4 relay": "192.88.99.1", "user info": "x@127.0.0.1",
    "user info before a name": "127.0.0.1@example.com", "an escape": "%31%32%37.0.0.1",
    "a zero byte": "127.0.0.1%00.example.com", "full width": "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
    "ideographic dots": "127\u30020\u30020\u30021", "circled": "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
    "brackets around a name": "[localhost]", "brackets around ipv4": "[127.0.0.1]", "no brackets": "::1",
    "a slash in front": "/127.0.0.1", "a backslash": "127.0.0.1\\.example.com",
}  # fmt: skip


TUNNEL, ABSOLUTE = "CONNECT {}:443 HTTP/1.1\r\nhost: {}:443\r\n\r\n", "GET http://{}/ HTTP/1.1\r\nhost: {}\r\n\r\n"


@pytest.mark.parametrize("form", [TUNNEL, ABSOLUTE])
@pytest.mark.parametrize("which", SPELLINGS)
def test_no_spelling_of_such_an_address_leads_to_a_dial(which: str, form: str) -> None:
    host = SPELLINGS[which]
    try:
        where = read_target(parse_request(form.format(host, host).encode()))
    except BadRequest:
        return  # nothing is asked about it, and nothing is resolved
    assert where.literal is not None, "it would be looked up as a name"
    assert refused(where.literal, where.port, NONE, NOBODY)


def test_the_table_holds_what_it_must() -> None:
    """A public address is let through by the same two steps, so the table does not pass for another reason."""
    assert len(SPELLINGS) >= 80
    for host in ("8.8.8.8", "[2001:4860:4860::8888]", "[2606:4700::1111]", "1.1.1.1", "[64:ff9b::808:808]", "223.255.255.255"):
        where = read_target(parse_request(TUNNEL.format(host, host).encode()))
        assert where.literal is not None
        assert refused(where.literal, 443, NONE, NOBODY) == ""


KINDS = {
    "10.1.2.3": "private", "127.0.0.1": "loopback", "169.254.1.1": "link-local", "169.254.169.254": "metadata",
    "100.64.0.1": "carrier-grade nat", "100.100.100.200": "metadata", "0.0.0.0": "unspecified", "224.0.0.1": "multicast",
    "255.255.255.255": "broadcast", "250.0.0.1": "reserved", "::": "unspecified", "::1": "loopback", "::2": "ipv4-compatible",
    "64:ff9b::a00:1": "nat64 of a private address", "64:ff9b::7f00:1": "nat64 of a loopback address",
    "64:ff9b::": "nat64 of an unspecified address", "64:ff9b:1::1": "local nat64", "2002::1": "6to4", "2001::1": "teredo",
    "2a00::5efe:a00:1": "isatap of a private address", "fd00::1": "private", "fe80::1": "link-local", "ff02::1": "multicast",
    "8000::1": "reserved", "8.8.8.8": "", "2a00::1": "", "2a00::5efe:808:808": "", "64:ff9b::808:808": "", "192.0.1.0": "",
}  # fmt: skip


@pytest.mark.parametrize("text", KINDS)
def test_a_refusal_names_the_kind_of_address(text: str) -> None:
    assert kind(of(text)) == KINDS[text]
    assert refused(of(text), 443, NONE, NOBODY) == KINDS[text]


TOPS_16 = (0, 0x64, 0x100, 0x2001, 0x2002, 0x3FFF, 0xFC00, 0xFE80, 0xFEC0)
TOPS_32 = (0, 0x0064FF9B, 0x20010000, 0x20010DB8, 0x20010002)
four = st.integers(0, (1 << 32) - 1).map(ipaddress.IPv4Address)
six = st.one_of(
    st.integers(0, (1 << 128) - 1),
    st.builds(lambda top, low: (top << 112) | low, st.sampled_from(TOPS_16), st.integers(0, (1 << 112) - 1)),
    st.builds(lambda top, low: (top << 96) | low, st.sampled_from(TOPS_32), st.integers(0, (1 << 96) - 1)),
).map(ipaddress.IPv6Address)  # fmt: skip


@given(four | six)
def test_what_we_call_public_python_calls_global_too(address: Address) -> None:
    if kind(address):
        return
    assert address.is_global
    assert not any((address.is_multicast, address.is_loopback, address.is_link_local, address.is_unspecified))
    inner = embedded(address)
    if inner is not None:
        assert not kind(inner)


@given(four)
def test_what_python_calls_global_we_refuse_only_where_the_table_says_so(address: ipaddress.IPv4Address) -> None:
    if address.is_global and not address.is_multicast:
        assert kind(address) in ("", "metadata", "6to4 relay", "protocol assignment", "reserved")


@given(four, st.sampled_from(["64:ff9b::", "::"]))
def test_a_private_address_is_not_public_in_any_wrapping(address: ipaddress.IPv4Address, prefix: str) -> None:
    wrapped = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(address))
    if kind(address):
        assert kind(wrapped)


# -- what the operator names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "yes", "no"), [
    ("10.0.0.0/8", ("10.1.2.3", 1), ("192.168.0.1", 443)),
    ("10.1.2.3", ("10.1.2.3", 65535), ("10.1.2.4", 443)),
    ("10.1.2.3:443", ("10.1.2.3", 443), ("10.1.2.3", 80)),
    ("10.0.0.0/8:8080", ("10.255.0.1", 8080), ("10.255.0.1", 80)),
    ("fd00::/8", ("fd12::1", 80), ("fc00::1", 80)),
    ("fd00::/8:443", ("fd12::1", 443), ("fd12::1", 80)),
    ("[fd00::1]:443", ("fd00::1", 443), ("fd00::2", 443)),
    ("[fd00::/64]:443", ("fd00::2", 443), ("fd00:0:0:1::2", 443)),
    ("::1", ("::1", 443), ("127.0.0.1", 443)),
    ("64:ff9b::a00:0/104", ("64:ff9b::a01:203", 443), ("10.1.2.3", 443)),
    ("169.254.169.254:80", ("169.254.169.254", 80), ("169.254.169.254", 443)),
])  # fmt: skip
def test_a_rule_lets_through_what_it_names_and_no_more(rule: str, yes: tuple[str, int], no: tuple[str, int]) -> None:
    rules = parse_rules((rule,))
    assert refused(of(yes[0]), yes[1], rules, NOBODY) == ""
    assert refused(of(no[0]), no[1], rules, NOBODY) != ""
    assert refused(of("8.8.8.8"), 443, rules, NOBODY) == ""


def test_a_second_spelling_and_a_scope_are_refused_whatever_is_named() -> None:
    assert refused(of("::ffff:8.8.8.8"), 443, EVERYTHING, NOBODY) == "ipv4-mapped"
    assert refused(of("fe80::1%eth0"), 443, EVERYTHING, NOBODY) == "scoped"
    assert refused(of("fe80::1"), 443, EVERYTHING, NOBODY) == ""


@pytest.mark.parametrize(("text", "said"), [
    ("", "is no `CIDR` or `CIDR:PORT`"),
    ("localhost", "is no `CIDR` or `CIDR:PORT`"),
    ("10.0.0.0/8 ", "is no `CIDR` or `CIDR:PORT`"),
    ("10.0.0.1/8", "is no network: 10.0.0.1/8 has host bits set"),
    ("10.0.0/24", "is no network: "),
    ("0x7f.1", "is no `CIDR` or `CIDR:PORT`"),
    ("10.0.0.0/33", "is no network: "),
    ("10.0.0.0/8:0", "port 0 is outside 1 to 65535"),
    ("10.0.0.0/8:65536", "port 65536 is outside 1 to 65535"),
    ("10.0.0.0/8:1000000000", "port 10000000 is outside 1 to 65535"),
    ("fd00::1/8", "is no network: fd00::1/8 has host bits set"),
    ("fd00::1:", "is no network: "),
    ("[::1", "is no `CIDR` or `CIDR:PORT`"),
    ("::ffff:10.0.0.0/104", "is an ipv4 network spelt as ipv6: write the ipv4 network"),
    ("::ffff:10.0.0.1", "is an ipv4 network spelt as ipv6: write the ipv4 network"),
])  # fmt: skip
def test_a_rule_that_names_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(OperatorFault) as fault:
        parse_rules(("10.0.0.0/8", text))
    assert str(fault.value).startswith(f"egress.allow_addresses: `{text}`")
    assert said in str(fault.value)


# -- our own ---------------------------------------------------------------------------------------------------------

HERE = {of("10.9.9.9"), of("2a00::9")}
OURS = OwnSet(
    exact=frozenset({(of("127.0.0.1"), 9092), (of("10.0.0.7"), 8123), (of("8.8.4.4"), 9092)}),
    everywhere=frozenset({17480}),
    is_local=lambda address: address in HERE,
)


@pytest.mark.parametrize(("text", "port"), [
    ("127.0.0.1", 9092), ("10.0.0.7", 8123), ("8.8.4.4", 9092), ("127.0.0.1", 17480), ("127.9.9.9", 17480), ("::1", 17480),
    ("10.9.9.9", 17480), ("2a00::9", 17480), ("0.0.0.0", 17480), ("0.0.0.0", 9092), ("::", 9092), ("::", 17480),
    ("::ffff:127.0.0.1", 9092), ("::ffff:0.0.0.0", 9092), ("::ffff:10.0.0.7", 8123), ("::ffff:10.9.9.9", 17480),
    ("64:ff9b::a00:7", 8123), ("64:ff9b::808:404", 9092), ("::127.0.0.1", 9092), ("2002:a00:7::1", 8123),
])  # fmt: skip
def test_our_own_listeners_are_refused_whatever_is_named(text: str, port: int) -> None:
    assert refused(of(text), port, EVERYTHING, OURS) == OWN


@pytest.mark.parametrize(("text", "port"), [
    ("127.0.0.1", 9093), ("127.0.0.2", 9092), ("10.0.0.7", 17480), ("10.0.0.8", 8123), ("8.8.8.8", 17480), ("2a00::8", 17480),
])  # fmt: skip
def test_what_is_beside_our_listeners_is_not_ours(text: str, port: int) -> None:
    assert refused(of(text), port, EVERYTHING, OURS) == ""


def test_an_address_stands_in_a_record_with_its_port() -> None:
    assert address_text(of("192.0.2.1"), 80) == "192.0.2.1:80"
    assert address_text(of("2001:DB8:0:0::1"), 443) == "[2001:db8::1]:443"
