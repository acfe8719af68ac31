"""The one credential of a request: the field `Proxy-Authorization`, read strictly (RFC 9110, section 11; RFC 7617; RFC 6750).

    Basic  base64(AGENT:SECRET), base64(AGENT+SESSION:SECRET)   the agent's static secret
    Basic  base64(AGENT:TOKEN)                                   a signed token; AGENT must be the agent that it names
    Bearer TOKEN                                                 the same token, which names the agent by itself

What is refused is counted under the name that it claims. A name is never kept where it may be a secret in the wrong place.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from enforcers.core.caller import NoIdentity
from enforcers.core.jws import TOKEN_BYTES_MAX, looks_like_token
from schemas.limits import NAME_BYTES_MAX
from schemas.vocabulary import shown

FIELD: Final = b"proxy-authorization"
PASSWORD_BYTES_MAX: Final = 1024
"""UTF-8 bytes of a static secret."""

VALUE_BYTES_MAX: Final = (TOKEN_BYTES_MAX + NAME_BYTES_MAX * 2 + 2) * 4 // 3 + 16
HIDDEN: Final = "(hidden)"
"""Stands for a claimed name that may be a secret."""

_SCHEME: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?: +([A-Za-z0-9._~+/-]+=*))?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}|eyJ.*")
"""What `wardline agent add` makes, and a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basic:
    """A static secret. `user` is the whole user name: an agent's name may have a `+` of its own."""

    user: str
    name: str
    session: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A signed token; `user` and `name` are empty where it came as Bearer."""

    user: str = ""
    name: str = ""
    session: str = ""
    text: str


Credential: TypeAlias = Basic | Token


def value_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The value of the field; names are in lower case. Raises NoIdentity `missing` or `two`."""
    found = [value for name, value in headers if name == FIELD]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoIdentity("missing", "this proxy needs to know which agent calls: give it `AGENT:SECRET` as its user")
    raise NoIdentity("two", f"the request has {len(found)} fields `Proxy-Authorization`, it may have one")


def read(headers: Iterable[tuple[bytes, bytes]]) -> Credential:
    """The credential of a request. Raises NoIdentity, with the claimed name where there is one."""
    return read_value(value_of(headers))


def read_value(value: bytes) -> Credential:
    """The credential in a value of the field. Raises NoIdentity `form` or `scheme`."""
    if len(value) > VALUE_BYTES_MAX:
        raise NoIdentity("form", f"`Proxy-Authorization` has {len(value)} bytes, limit is {VALUE_BYTES_MAX}")
    parts = _SCHEME.fullmatch(value)
    if parts is None:
        raise NoIdentity("form", "`Proxy-Authorization` is not a scheme and one token behind it")
    scheme = parts[1].lower()
    if scheme not in (b"basic", b"bearer"):
        raise NoIdentity("scheme", "the scheme of `Proxy-Authorization` is neither Basic nor Bearer")
    given = (parts[2] or b"").decode()
    if not given:
        raise NoIdentity("form", "`Proxy-Authorization` has nothing behind its scheme")
    if scheme == b"bearer":
        return Token(text=given)
    return _basic(given)


def _basic(given: str) -> Credential:
    try:
        raw = base64.b64decode(given, validate=True)
        if base64.b64encode(raw).decode() != given:
            raise ValueError("another spelling")
        text = raw.decode()
    except ValueError:
        raise NoIdentity("form", "`Proxy-Authorization` is no base64 of utf-8 text") from None
    user, colon, password = text.partition(":")
    name, _, session = user.partition("+")
    if not colon:
        raise NoIdentity("form", "`Proxy-Authorization` is not `AGENT:SECRET`: it has no `:`")
    claimed = claimed_name(name)
    for what, part in (("agent", name), ("session", session)):
        if _CONTROL.search(part):
            raise NoIdentity("form", f"the {what} in `Proxy-Authorization` has a control character", claimed)
        if len(part.encode()) > NAME_BYTES_MAX:
            raise NoIdentity("form", f"the {what} has {len(part.encode())} bytes, limit is {NAME_BYTES_MAX}", claimed)
    if not name:
        raise NoIdentity("form", "`Proxy-Authorization` has no agent: it is `AGENT:SECRET`")
    if not password:
        raise NoIdentity("form", "`Proxy-Authorization` has no secret: it is `AGENT:SECRET`", claimed)
    if looks_like_token(password):
        return Token(user=user, name=name, session=session, text=password)
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        raise NoIdentity("form", f"the secret is longer than {PASSWORD_BYTES_MAX} bytes, the limit", claimed)
    return Basic(user=user, name=name, session=session, password=password)


def claimed_name(name: str) -> str:
    """A name as it may be counted: one short line, and HIDDEN where somebody may have given a secret for a name."""
    if _SECRET.fullmatch(name):
        return HIDDEN
    return shown(name)
