"""What a request to control may hold: each field's type and bounds, so that what enters the log is right from the start.

Whatever is wrong is an OperatorFault that names the field. The value of `secret` is never part of a message.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas.control import key_id_of
from schemas.detectors import DETECTORS
from schemas.errors import OperatorFault
from schemas.limits import NAME_BYTES_MAX, RESOURCE_BYTES_MAX
from schemas.vocabulary import shown

ITEMS_MAX: Final = 10_000
"""Revocations in one `revoke-many`."""

REASON_BYTES_MAX: Final = 1024
IDENTITIES_MAX: Final = 32
"""Outside identities of one agent, of each kind."""

LASTS_S_MAX: Final = 100 * 366 * 86_400
EXCEPTION_S_MAX: Final = 366 * 86_400
"""How long findings may be called false before somebody must say so again: what is never looked at again is a hole."""

SUBJECT_BYTES_MAX: Final = 8 << 10
"""Of what a finding is about: some names, each bounded."""

TIME_S_MAX: Final = (1 << 33) - 1

FIELDS: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "revoke": "kind name cascade reason for_s not_before_s only_new",
        "revoke-many": "items",
        "unrevoke": "kind name cascade",
        "exception-add": "finding detector subject owner reason for_s",
        "exception-remove": "name",
        "pause": "reason",
        "resume": "",
        "agent-add": "name owner secret subs spiffe",
        "agent-rotate": "name secret",
        "agent-remove": "name",
        "enforcer-add": "name key",
        "enforcer-remove": "name",
        "worker-add": "name key",
        "worker-remove": "name",
        "policy": "digest bytes packed chunks policies",
        "policy-rollback": "",
        "key-rotate": "public",
        "key-retire": "key_id",
        "forget": "keys",
    }.items()
}
"""Each request and the fields that it may have."""

INTERNAL: Final = frozenset({"policy", "forget"})
"""Only control itself asks for these."""

_SECRET: Final = re.compile(r"scrypt\$[0-9]{1,8}\$[0-9]{1,4}\$[0-9]{1,4}\$[A-Za-z0-9+/_=-]{16,128}\$[A-Za-z0-9+/_=-]{16,256}")
_PEER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FINDING: Final = re.compile(r"[0-9a-f]{32}")
_PUBLIC: Final = re.compile(r"[0-9a-f]{64}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def checked(request: Mapping[str, Any]) -> str:
    """What is asked for. Raises OperatorFault for what is not known, or has a field that is not."""
    do = request.get("do")
    if not isinstance(do, str) or do not in FIELDS:
        raise OperatorFault(f"`{shown(str(do))}` is no request, known are {', '.join(sorted(FIELDS.keys() - INTERNAL))}")
    for field in request:
        if field != "do" and field not in FIELDS[do]:
            raise OperatorFault(f"`{do}` has no field `{shown(str(field))}`")
    return do


def text(request: Mapping[str, Any], field: str, limit: int, *, empty: bool = False) -> str:
    """A text without control characters, of `limit` bytes at most."""
    value = request.get(field, "" if empty else None)
    if not isinstance(value, str):
        raise OperatorFault(f"`{field}` is not a text")
    if not value and not empty:
        raise OperatorFault(f"`{field}` is empty")
    if _CONTROL.search(value):
        raise OperatorFault(f"`{field}` has a control character")
    if (size := len(value.encode())) > limit:
        raise OperatorFault(f"`{field}` has {size} bytes, limit is {limit}")
    return value


def whole(request: Mapping[str, Any], field: str, limit: int) -> int:
    """A whole number from 0, which is its default, to `limit`."""
    value = request.get(field, 0)
    if type(value) is not int or not 0 <= value <= limit:
        raise OperatorFault(f"`{field}` is not a whole number from 0 to {limit}")
    return value


def flag(request: Mapping[str, Any], field: str) -> bool:
    """True or false, which is its default."""
    value = request.get(field, False)
    if not isinstance(value, bool):
        raise OperatorFault(f"`{field}` is not true or false")
    return value


def reason(request: Mapping[str, Any]) -> str:
    """Why: everything that refuses calls has one."""
    return text(request, "reason", REASON_BYTES_MAX)


def items(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The revocations of `revoke-many`."""
    value = request.get("items")
    if not isinstance(value, list) or not all(isinstance(item, dict) and "do" not in item for item in value):
        raise OperatorFault("`items` is not an array of revocations")
    if not 1 <= len(value) <= ITEMS_MAX:
        raise OperatorFault(f"`items` has {len(value)} revocations, 1 to {ITEMS_MAX} are possible")
    return value


def agent(request: Mapping[str, Any]) -> str:
    """The name of an agent."""
    return text(request, "name", NAME_BYTES_MAX)


def owner(request: Mapping[str, Any]) -> str:
    """Who answers for an agent."""
    return text(request, "owner", NAME_BYTES_MAX)


def peer(request: Mapping[str, Any]) -> str:
    """The name of a host or worker: it is part of file names."""
    name = text(request, "name", NAME_BYTES_MAX)
    if not _PEER.fullmatch(name):
        raise OperatorFault(f"`{shown(name)}` is no name of a host or worker: letters, digits, `.`, `_` and `-`, 64 at most")
    return name


def finding(request: Mapping[str, Any], field: str) -> str:
    """The id of a finding, or of an exception."""
    value = text(request, field, NAME_BYTES_MAX)
    if not _FINDING.fullmatch(value):
        raise OperatorFault(f"`{field}` is not an id of 32 hex digits")
    return value


def detector(request: Mapping[str, Any]) -> str:
    """Whose finding it is."""
    value = text(request, "detector", NAME_BYTES_MAX)
    if value not in DETECTORS:
        raise OperatorFault(f"`{shown(value)}` is no detector, known are {', '.join(DETECTORS)}")
    return value


def lasting(request: Mapping[str, Any]) -> int:
    """For how long findings are called false, in seconds."""
    value = whole(request, "for_s", EXCEPTION_S_MAX)
    if not value:
        raise OperatorFault(f"`for_s` is not a whole number from 1 to {EXCEPTION_S_MAX}: an exception ends")
    return value


def secret(request: Mapping[str, Any]) -> str:
    """The scrypt hash of a credential."""
    value = request.get("secret")
    if not isinstance(value, str) or not _SECRET.fullmatch(value):
        raise OperatorFault("`secret` is not `scrypt$N$R$P$SALT$HASH`")
    return value


def subs(request: Mapping[str, Any]) -> list[list[str]]:
    """(issuer, subject) pairs, sorted."""
    value = request.get("subs", [])
    fits = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in value
    )
    if not fits or len(value) > IDENTITIES_MAX:
        raise OperatorFault(f"`subs` is not an array of at most {IDENTITIES_MAX} [issuer, subject]")
    for issuer, subject in value:
        text({"issuer": issuer}, "issuer", RESOURCE_BYTES_MAX)
        text({"subject": subject}, "subject", NAME_BYTES_MAX)
        if " " in issuer:
            raise OperatorFault(f"issuer `{shown(issuer)}` has a space")
    return sorted([issuer, subject] for issuer, subject in {(issuer, subject) for issuer, subject in value})


def spiffe(request: Mapping[str, Any]) -> list[str]:
    """SPIFFE ids, sorted."""
    value = request.get("spiffe", [])
    if not isinstance(value, list) or len(value) > IDENTITIES_MAX or not all(isinstance(one, str) for one in value):
        raise OperatorFault(f"`spiffe` is not an array of at most {IDENTITIES_MAX} texts")
    for one in value:
        text({"spiffe": one}, "spiffe", RESOURCE_BYTES_MAX)
        if not one.startswith("spiffe://") or " " in one:
            raise OperatorFault(f"`{shown(one)}` is no spiffe id: one begins with `spiffe://`")
    return sorted(set(value))


def public(request: Mapping[str, Any], field: str) -> str:
    """A raw Ed25519 public key, hex."""
    value = request.get(field)
    try:
        if not isinstance(value, str) or not _PUBLIC.fullmatch(value):
            raise ValueError
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(value))
    except ValueError as fault:
        raise OperatorFault(f"`{field}` is not an Ed25519 public key, 64 hex digits") from fault
    return value


def key_id(public_hex: str) -> str:
    """What a control key is called."""
    return key_id_of(bytes.fromhex(public_hex)).hex()
