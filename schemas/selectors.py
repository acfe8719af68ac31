"""What a revocation names, and which of those names are true of a call.

    agent NAME              the agent that acts;            with cascade: at any position of the chain
    principal UID           the one that acts or the root;  with cascade: at any position
    session, grant, issuer  their own text
    token HASH              SHA-256 of the token, 64 hex digits: a token itself is never written down
    key THUMBPRINT          of the key that proved the agent (RFC 7638)
    destination NAME        `name:port`, a name with every port, a registrable domain, an MCP server or `server/tool`

A selector's text is `kind:name`, with cascade `kind*:name` where the kind has positions. A call has a tuple of texts for who
makes it and one for what it touches; it is revoked when one of them is.
"""

import contextlib
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from schemas.errors import AgentFault, OperatorFault
from schemas.limits import NAME_BYTES_MAX, RESOURCE_BYTES_MAX
from schemas.vocabulary import entity_uid, parse_uid, shown

KINDS: Final = ("agent", "key", "token", "session", "destination", "principal", "grant", "issuer")
POSITIONED: Final = frozenset({"agent", "principal"})
"""Kinds for which cascade makes a difference: only they stand at several positions of a chain."""

_HASH: Final = re.compile(r"[0-9a-fA-F]{64}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """One thing that is revoked."""

    kind: str
    name: str
    cascade: bool = False

    @property
    def text(self) -> str:
        """What stands behind `revocation/` in the log, and what a call's texts are compared with."""
        star = "*" if self.cascade and self.kind in POSITIONED else ""
        return f"{self.kind}{star}:{self.name}"


def make_selector(kind: str, name: str, *, cascade: bool = False) -> Selector:
    """Bring what an operator wrote into its one spelling. Raises OperatorFault.

    A token that is not a SHA-256 already is hashed, so that no token is written down. A principal without a type is a User. A
    host is in lower case, without a dot at its end; an IPv6 address is in its short form, in brackets.
    """
    if kind not in KINDS:
        raise OperatorFault(f"`{shown(kind)}` cannot be revoked, only {', '.join(KINDS)}")
    try:
        if kind == "token" and not _HASH.fullmatch(name):
            name = hashlib.sha256(name.encode()).hexdigest() if name else ""
        elif kind == "token":
            name = name.lower()
        _check(kind, name)
        if kind == "principal":
            name = entity_uid(*parse_uid(name)) if '::"' in name else entity_uid("User", name)
        elif kind == "agent" and name.startswith('Agent::"'):
            name = parse_uid(name)[1]
        elif kind == "destination":
            name = parse_uid(name)[1] if '::"' in name else name
            name = name if "/" in name else _folded(name)
    except AgentFault as fault:
        raise OperatorFault(str(fault)) from fault
    except UnicodeEncodeError:
        # neither shown nor the cause of what is raised: it may be a token
        raise OperatorFault(f"this {kind} has a lone surrogate: it is not valid unicode") from None
    _check(kind, name)
    return Selector(kind=kind, name=name, cascade=cascade)


def _check(kind: str, name: str) -> None:
    """Asked of what was written, and of its one spelling: quotes make a text longer, and a uid may stand for an empty one."""
    limit = RESOURCE_BYTES_MAX if kind in ("destination", "issuer", "principal") else NAME_BYTES_MAX
    size = len(name.encode())
    if not name or size > limit or _CONTROL.search(name):
        what = "is empty" if not name else "has a control character" if size <= limit else f"has {size} bytes, limit is {limit}"
        raise OperatorFault(f"{kind} `{shown(name)}` {what}")


def _folded(name: str) -> str:
    """The one spelling of a host, with or without its port, of a domain and of a server."""
    host, colon, port = name.rpartition(":")
    if not (port.isascii() and port.isdigit()) or (":" in host and not host.endswith("]")):
        host, colon, port = name, "", ""
    plain = host.lower().removesuffix(".")
    if ":" in plain:
        with contextlib.suppress(ValueError):
            plain = f"[{ipaddress.IPv6Address(plain.removeprefix('[').removesuffix(']')).compressed}]"
    return f"{plain}{colon}{port}"


def caller_texts(
    chain: Sequence[str], *, session: str = "", token: str = "", twin: str = "", key: str = "", grant: str = "",
    issuer: str = "",
) -> tuple[str, ...]:  # fmt: skip
    """The selectors that are true of who makes a call. `chain` is principal uids, root first, the acting one last.

    `twin` is the hash of the other text that is the same token, where its signature has two forms.
    """
    texts: dict[str, None] = {}
    for uid in chain:
        texts[f"principal*:{uid}"] = None
        if uid.startswith('Agent::"'):
            texts[f"agent*:{parse_uid(uid)[1]}"] = None
    for uid in (chain[0], chain[-1]) if chain else ():
        texts[f"principal:{uid}"] = None
    if chain and chain[-1].startswith('Agent::"'):
        texts[f"agent:{parse_uid(chain[-1])[1]}"] = None
    said = (("session", session), ("token", token), ("token", twin), ("key", key), ("grant", grant), ("issuer", issuer))
    for kind, name in said:
        if name:
            texts[f"{kind}:{name}"] = None
    return tuple(texts)


def target_texts(resource: str, domain: str = "") -> tuple[str, ...]:
    """The selectors that are true of what a call touches: a resource's uid, and its registrable domain where it has one."""
    kind, name = parse_uid(resource)
    texts = {f"destination:{name if '/' in name else _folded(name)}": None}
    if kind == "Host":
        texts[f"destination:{name.rpartition(':')[0].lower()}"] = None
    elif kind == "Tool":
        server = name.partition("/")[0]
        texts[f"destination:{_folded(server)}"] = None
    if domain:
        texts[f"destination:{domain}"] = None
    return tuple(texts)
