"""Which addresses may be dialled: the public ones, those that the operator names, and never Wardline's own.

    own listener  ->  refused, whatever the operator says            (ARCHITECTURE rule: the enforcer never dials itself)
    v4-mapped     ->  refused, whatever the operator says: it is a second spelling of an address that has one
    with a scope  ->  refused, whatever the operator says: it means another host on each interface
    named by `[egress] allow_addresses`  ->  may be dialled
    not public    ->  refused, and the word says which kind of address it is
    public        ->  may be dialled

What is not public follows the IANA special-purpose registries (RFC 6890) and is turned round for IPv6: only 2000::/3 without
its special blocks is public, and the well-known NAT64 prefix as far as the IPv4 address inside it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from schemas.errors import OperatorFault
from schemas.vocabulary import host_port, shown

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

OWN: Final = "wardline's own listener"
MAPPED: Final = "ipv4-mapped"
SCOPED: Final = "scoped"

_SPECIAL_4: Final = (
    ("0.0.0.0/8", "unspecified"),
    ("10.0.0.0/8", "private"),
    ("100.100.100.200/32", "metadata"),  # one provider's, inside the shared space
    ("100.64.0.0/10", "carrier-grade nat"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "metadata"),  # one provider's wire server: public by its number, the machine's own host by its route
    ("169.254.169.254/32", "metadata"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.192/32", "metadata"),
    ("192.0.0.0/24", "protocol assignment"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmark"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("240.0.0.0/4", "reserved"),
)
"""IPv4, the narrower first. What is in none of them is public."""

_SPECIAL_6: Final = (
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::/96", "ipv4-compatible"),
    ("::ffff:0:0:0/96", "ipv4-translated"),
    ("64:ff9b:1::/48", "local nat64"),  # RFC 8215: where the IPv4 address stands in it is the network's own affair
    ("100::/64", "discard"),
    ("2001::/32", "teredo"),
    ("2001:2::/48", "benchmark"),
    ("2001:db8::/32", "documentation"),
    ("2001::/23", "protocol assignment"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
    ("fd00:ec2::254/128", "metadata"),
    ("fd20:ce::254/128", "metadata"),
    ("fd00:42::42/128", "metadata"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)
"""IPv6, the narrower first. What is in none of them is public inside 2000::/3 and reserved elsewhere."""

_PUBLIC_6: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})
"""The upper half of an interface id that holds an IPv4 address in its lower half (RFC 5214, section 6.1)."""


def _compiled(table: tuple[tuple[str, str], ...]) -> tuple[tuple[int, int, str], ...]:
    nets = [(ip_network(text), why) for text, why in table]
    return tuple((int(net.network_address), int(net.netmask), why) for net, why in nets)


_BLOCKS_4: Final = _compiled(_SPECIAL_4)
_BLOCKS_6: Final = _compiled(_SPECIAL_6)


@dataclass(frozen=True, slots=True)
class Rules:
    """What `allow_addresses` names. The zero value names nothing."""

    allowed: tuple[tuple[Network, int], ...] = ()
    """A network and a port; port 0 is every port."""

    def name(self, address: Address, port: int) -> bool:
        """Whether a rule names this address at this port."""
        return any(
            address in network and wanted in (0, port) for network, wanted in self.allowed if network.version == address.version
        )


def _nowhere(_: Address) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class OwnSet:
    """Where Wardline itself listens, as far as this machine and its configuration know."""

    exact: frozenset[tuple[Address, int]] = frozenset()
    """Address and port of every listener on one address, and of a broker, store or control that is elsewhere."""
    everywhere: frozenset[int] = frozenset()
    """Ports of the listeners on a wildcard address: theirs on every local address."""
    is_local: Callable[[Address], bool] = _nowhere
    """Whether an address is one of this machine's."""

    def holds(self, address: Address, port: int) -> bool:
        """Whether a connection to `address` at `port` would reach a listener of ours."""
        if (address, port) in self.exact:
            return True
        if address.is_unspecified:  # the kernel takes it to a loopback address
            return port in self.everywhere or any(port == one for _, one in self.exact)
        return port in self.everywhere and (address.is_loopback or self.is_local(address))


def parse_rules(texts: tuple[str, ...]) -> Rules:
    """Read `[egress] allow_addresses`: `10.0.0.0/8`, `10.1.2.3:443`, `fd00::/8`, `fd00::/8:443`, `[fd00::1]:443`.

    Raises OperatorFault for a text that is no network, one with bits behind its prefix, a port outside 1 to 65535, and a
    v4-mapped network, which nothing would ever match.
    """
    return Rules(tuple(_rule(text) for text in texts))


_RULE: Final = re.compile(
    r"\[(?P<boxed>[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?)\](?::(?P<port1>[0-9]+))?"
    r"|(?P<four>[0-9.]+(?:/[0-9]{1,2})?)(?::(?P<port2>[0-9]+))?"
    r"|(?P<six>[0-9A-Fa-f:.]+/[0-9]{1,3})(?::(?P<port3>[0-9]+))?"
    r"|(?P<one>[0-9A-Fa-f:.]+)"
)


def _rule(text: str) -> tuple[Network, int]:
    where = f"egress.allow_addresses: `{shown(text)}`"
    found = _RULE.fullmatch(text)
    if found is None:
        raise OperatorFault(f"{where} is no `CIDR` or `CIDR:PORT`")
    said = found["boxed"] or found["four"] or found["six"] or found["one"]
    port_text = found["port1"] or found["port2"] or found["port3"] or ""
    port = int(port_text) if len(port_text) <= 5 and port_text else 0
    if port_text and not 1 <= port <= 65535:
        raise OperatorFault(f"{where}: port {port_text[:8]} is outside 1 to 65535")
    try:
        network = ip_network(said)
    except ValueError as fault:
        raise OperatorFault(f"{where} is no network: {str(fault)[:1].lower()}{str(fault)[1:]}") from fault
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise OperatorFault(f"{where} is an ipv4 network spelt as ipv6: write the ipv4 network")
    return network, port


def refused(address: Address, port: int, rules: Rules, own: OwnSet) -> str:
    """Why this address must not be dialled at this port; empty where it may be."""
    inner = embedded(address)
    if own.holds(address, port) or (inner is not None and own.holds(inner, port)):
        return OWN
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return MAPPED
        if address.scope_id is not None:
            return SCOPED
    why = kind(address)
    return "" if not why or rules.name(address, port) else why


def embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that a gateway, relay or kernel takes a connection to this IPv6 address to, if there is one."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    value = int(address)
    if address in _NAT64 or value >> 32 == 0:
        return IPv4Address(value & 0xFFFFFFFF) if value > 1 else None
    if address.sixtofour is not None:
        return address.sixtofour
    if (value >> 32) & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(value & 0xFFFFFFFF)
    return None


@lru_cache(4096)
def kind(address: Address) -> str:
    """What sort of address this is that is not public, in a word or two; empty for a public one."""
    if isinstance(address, IPv4Address):
        return _block(int(address), _BLOCKS_4)
    inner = embedded(address)
    if address in _NAT64:
        assert inner is not None
        inside = kind(inner)
        return f"nat64 of {_article(inside)} address" if inside else ""
    if why := _block(int(address), _BLOCKS_6):
        return why
    if address not in _PUBLIC_6:
        return "reserved"
    return f"isatap of {_article(inside)} address" if inner is not None and (inside := kind(inner)) else ""


def _block(value: int, blocks: tuple[tuple[int, int, str], ...]) -> str:
    for network, mask, why in blocks:
        if value & mask == network:
            return why
    return ""


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def read_address(text: str) -> Address | None:
    """An address in a usual spelling; None for anything else."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def address_text(address: Address, port: int) -> str:
    """`192.0.2.1:443`, `[2001:db8::1]:443`: how an address that was dialled stands in a record."""
    return host_port(str(address), port)
