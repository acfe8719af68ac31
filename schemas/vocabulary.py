"""What Wardline's entities are called in Cedar, and which contain which by their names alone.

    Agent::"name"            User::"name"            Service::"name"         (groups of them come from entities.json)
    Action::"http:GET"       in `http:read` (safe methods) or `http:write` (every other), and those in `http`
    Action::"mcp:tools/call" and every other `mcp:...` in `mcp`; `tcp:CONNECT` is in no group
    Tool::"server/tool"      in McpServer::"server": the server's name has no `/`, a tool's may
    Host::"name:port"        in Domain::"registrable domain", by the public suffix list; an address is in none

A uid's text has one spelling, so that equal entities are equal texts: `quote` escapes `"`, `\\` and control characters and
nothing else, and `parse_uid` refuses any other spelling. A text of ours therefore never holds a control character.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from publicsuffixlist import PublicSuffixList

from schemas.errors import AgentFault
from schemas.limits import NAME_BYTES_MAX, RESOURCE_BYTES_MAX, STRING_BYTES_MAX

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""HTTP methods that do not ask for a change (RFC 9110, section 9.2.1). A method that is not listed counts as a write."""

ACTION_GROUPS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        'Action::"http"': (),
        'Action::"http:read"': ('Action::"http"',),
        'Action::"http:write"': ('Action::"http"',),
        'Action::"mcp"': (),
    }
)
"""The built-in groups of actions and the groups that contain them."""

RESERVED_WORDS: Final = frozenset({"true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar"})
"""Identifiers that no type name may use."""

_SHORT: Final = {"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_LONG: Final = {text[1]: character for character, text in _SHORT.items()} | {"'": "'"}
_TO_ESCAPE = re.compile(r'["\\\x00-\x1f\x7f-\x9f]')
_ESCAPE = re.compile(r"\\(?:x([0-7][0-9A-Fa-f])|u\{([0-9A-Fa-f](?:_*[0-9A-Fa-f]){0,5}_*)\}|([\"\\'0tnr]))")
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:::[A-Za-z_][A-Za-z0-9_]*)*")
_UID = re.compile(rf'({_PATH.pattern})::"((?:[^"\\\x00-\x1f\x7f-\x9f]|\\[^\x00-\x1f\x7f-\x9f])*)"')
_HOST = re.compile(r"[a-z0-9._-]+")
_LAST_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_SUFFIXES = PublicSuffixList()


def quote(text: str) -> str:
    """A Cedar string literal. Raises AgentFault for a lone surrogate, which no UTF-8 text can hold."""
    if not text.isascii() and any(unicodedata.category(character) == "Cs" for character in text):
        raise AgentFault(f"`{text.encode('ascii', 'backslashreplace').decode()}` has a lone surrogate: it is not valid unicode")
    return f'"{_TO_ESCAPE.sub(_escaped, text)}"'


def _escaped(found: re.Match[str]) -> str:
    return _SHORT.get(found[0]) or f"\\u{{{ord(found[0]):x}}}"


def unquote(body: str) -> str:
    """The text that the body of a Cedar string literal (between its quotes) stands for.

    Raises AgentFault for an escape that Cedar does not have; its message names the escape and `at` says where it stands.
    """
    if "\\" not in body:
        return body
    parts: list[str] = []
    here = 0
    while (slash := body.find("\\", here)) >= 0:
        parts.append(body[here:slash])
        found = _ESCAPE.match(body, slash)
        if found is None:
            raise _bad_escape(body, slash)
        ascii_code, code, short = found.groups()
        value = int(ascii_code, 16) if ascii_code else int(code.replace("_", ""), 16) if code else ord(_LONG[short])
        if value > 0x10FFFF or 0xD800 <= value <= 0xDFFF:
            raise _bad_escape(body, slash)
        parts.append(chr(value))
        here = found.end()
    parts.append(body[here:])
    return "".join(parts)


class EscapeFault(AgentFault):
    """A string literal has an escape that Cedar does not know; `at` is its index in the literal's body."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


def _bad_escape(body: str, at: int) -> EscapeFault:
    if body.startswith("\\u{", at) and "}" in body[at : at + 12]:
        end = body.index("}", at) + 1
    else:
        end = at + (4 if body.startswith("\\x", at) else 2)
    return EscapeFault(at, f"`{shown(body[at:end])}` is no escape that a string may have")


def is_type_name(text: str) -> bool:
    """Whether `text` is a Cedar entity type: identifiers joined by `::`, none of them reserved."""
    return _PATH.fullmatch(text) is not None and RESERVED_WORDS.isdisjoint(text.split("::"))


def entity_uid(kind: str, name: str) -> str:
    """The one text of the entity `kind::"name"`. Raises AgentFault for a lone surrogate in the name."""
    return f"{kind}::{quote(name)}"


def parse_uid(text: str) -> tuple[str, str]:
    """(type, id) of a uid's text. Raises AgentFault when it is no uid in its one spelling, or above STRING_BYTES_MAX."""
    found = _UID.fullmatch(text) if len(text) <= STRING_BYTES_MAX else None
    if found is not None and RESERVED_WORDS.isdisjoint(found[1].split("::")):
        try:
            name = unquote(found[2])
            if quote(name) == f'"{found[2]}"':
                return found[1], name
        except EscapeFault:
            pass
    raise AgentFault(f"`{shown(text)}` is no entity uid: one is written `Type::\"id\"`")


def shown(text: str) -> str:
    """Somebody's text as part of a one-line message: cut at 60 characters, and what is not printable escaped."""
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def _bounded(what: str, name: str, limit: int) -> str:
    if not name:
        raise AgentFault(f"{what} is empty")
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise AgentFault(f"{what} `{shown(name)}` has {size} bytes, limit is {limit}")
    return name


def agent_uid(name: str) -> str:
    """`Agent::"name"`. Raises AgentFault when the name is empty or longer than NAME_BYTES_MAX."""
    return entity_uid("Agent", _bounded("agent", name, NAME_BYTES_MAX))


def user_uid(name: str) -> str:
    """`User::"name"`. Raises AgentFault when the name is empty or longer than NAME_BYTES_MAX."""
    return entity_uid("User", _bounded("user", name, NAME_BYTES_MAX))


def service_uid(name: str) -> str:
    """`Service::"name"`. Raises AgentFault when the name is empty or longer than NAME_BYTES_MAX."""
    return entity_uid("Service", _bounded("service", name, NAME_BYTES_MAX))


def action_uid(text: str) -> str:
    """`Action::"text"`, such as `http:GET` or `mcp:tools/call`.

    Raises AgentFault when it is empty, longer than NAME_BYTES_MAX, or the name of a built-in group: a group contains itself,
    so a call with the HTTP method `read` would otherwise be a member of `http:read`.
    """
    uid = entity_uid("Action", _bounded("action", text, NAME_BYTES_MAX))
    if uid in ACTION_GROUPS:
        raise AgentFault(f"`{text}` is a group of actions, no action of a call")
    return uid


def server_uid(name: str) -> str:
    """`McpServer::"name"`. Raises AgentFault when the name is empty, too long, or has a `/`, which ends it in a tool's name."""
    if "/" in _bounded("server", name, NAME_BYTES_MAX):
        raise AgentFault(f"server `{shown(name)}` has a `/`, which separates a server from its tool")
    return entity_uid("McpServer", name)


def tool_uid(server: str, tool: str) -> str:
    """`Tool::"server/tool"`. Raises AgentFault when either name is empty or too long, or the server's has a `/`."""
    server_uid(server)
    return entity_uid("Tool", f"{server}/{_bounded('tool', tool, NAME_BYTES_MAX)}")


def host_uid(name: str, port: int) -> str:
    """`Host::"name:port"`: lower case, no dot at the end, an IPv6 address in brackets and in its short form.

    Raises AgentFault for a name that is empty, not ASCII (an international name goes over the wire as `xn--...`), or longer
    than RESOURCE_BYTES_MAX with its port, and for a port outside 1 to 65535.
    """
    if not 1 <= port <= 65535:
        raise AgentFault(f"port `{port}` is not in 1..65535")
    if not name.isascii():  # asked before case is folded: some letters have an ASCII lower case
        raise AgentFault(f"host `{shown(name)}` is not ascii: write it as its dns label `xn--...`")
    plain = _plain_host(name)
    if ":" in plain and "%" not in plain:
        try:
            plain = f"[{ipaddress.IPv6Address(plain.removeprefix('[').removesuffix(']')).compressed}]"
        except ValueError as fault:
            raise AgentFault(f"host `{shown(name)}` is no name and no ipv6 address") from fault
    elif plain and not _HOST.fullmatch(plain):
        raise AgentFault(f"host `{shown(name)}` has a character that no host name has")
    return entity_uid("Host", _bounded("host", f"{plain}:{port}" if plain else "", RESOURCE_BYTES_MAX))


def host_port(host: str, port: int) -> str:
    """`HOST:PORT`, an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


UNIX: Final = "unix"
"""Stands for where a connection came from that was made to a door's socket on disk: a process of the door's own machine."""


def peer_address(address: str) -> str:
    """An IP address in its one spelling: short form, no zone (RFC 4007), one that stands for an IPv4 address (RFC 4291, section
    2.5.5.2) as that. Raises ValueError for what is none."""
    if ":" not in address:
        return str(ipaddress.IPv4Address(address))
    found = ipaddress.IPv6Address(address.partition("%")[0])
    return str(found.ipv4_mapped or found)


def _plain_host(name: str) -> str:
    return name.lower().removesuffix(".")


def registrable_domain(host: str) -> str:
    """The domain that somebody registered: `example.co.uk` for `www.example.co.uk`, by the public suffix list.

    Empty for an address, a single label, a name that is not ASCII, and a public suffix itself (also a private one: `github.io`
    is nobody's domain).
    """
    plain = _plain_host(host)
    if not host.isascii() or plain.startswith("[") or _LAST_NUMBER.fullmatch(plain.rpartition(".")[2]):
        return ""
    return _SUFFIXES.privatesuffix(plain) or ""


def implied_parents(uid: str) -> tuple[str, ...]:
    """The entities that contain `uid` by its name alone, direct ones only, in a fixed order. Never raises.

    What is not a uid is in nothing. The bundle's `entities.json` may add parents to any entity, these included.
    """
    return _implied(uid) if len(uid) <= STRING_BYTES_MAX else ()


@lru_cache(maxsize=1024)
def _implied(uid: str) -> tuple[str, ...]:
    kind, mark, _ = uid.partition('::"')
    if not mark or kind not in ("Tool", "Host", "Action"):
        return ()
    try:
        name = parse_uid(uid)[1]
    except AgentFault:
        return ()
    if kind == "Tool":
        server, slash, _ = name.partition("/")
        return (entity_uid("McpServer", server),) if server and slash else ()
    if kind == "Host":
        domain = registrable_domain(name.rpartition(":")[0])
        return (entity_uid("Domain", domain),) if domain else ()
    return _groups_of_action(uid, name)


def _groups_of_action(uid: str, name: str) -> tuple[str, ...]:
    if uid in ACTION_GROUPS:
        return ACTION_GROUPS[uid]
    family, colon, verb = name.partition(":")
    if not colon or not verb:
        return ()
    if family == "http":
        return ('Action::"http:read"',) if verb in SAFE_METHODS else ('Action::"http:write"',)
    return ('Action::"mcp"',) if family == "mcp" else ()
