"""Signed tokens: a strict reader of compact JWS (RFC 7515), and of the key sets that they are checked with (RFC 7517).

    HEADER.PAYLOAD.SIGNATURE   base64url without padding and in its one spelling; header and payload are JSON objects

Only what an issuer needs and nothing that an attacker does: EdDSA (Ed25519) and ES256; no key, address or certificate from the
header, no extension, no compression. A member that stands twice, a number that JSON does not have, a text that is no UTF-8:
refused. So a token has one meaning, and no two readers can disagree about it.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from enforcers.core.caller import NoIdentity
from schemas.canonical import canonical
from schemas.errors import OperatorFault
from schemas.vocabulary import shown

TOKEN_BYTES_MAX: Final = 16 << 10
JWKS_BYTES_MAX: Final = 256 << 10
KEYS_MAX: Final = 256
"""Keys in one set."""

KID_CHARS_MAX: Final = 256
SIGNATURE_BYTES: Final = 64
ALGORITHMS: Final[Mapping[str, str]] = {"EdDSA": "Ed25519", "Ed25519": "Ed25519", "ES256": "P-256"}
"""`alg` -> the curve of its keys. `Ed25519` is the name of RFC 9864 for what EdDSA means with such a key."""

TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""`typ`, where there is one, in lower case: a token of another kind proves something else."""

FORBIDDEN: Final = frozenset({"crit", "jku", "x5u", "x5c", "jwk", "zip", "b64", "enc", "epk"})
"""Header members that would change what is checked, or by which key."""

_ALPHABET: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

Check = Callable[[bytes, bytes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One public key of an issuer."""

    curve: str
    kid: str = ""
    alg: str = ""
    """The one algorithm that it is for; empty where its set does not say."""
    thumbprint: str
    """RFC 7638, base64url."""
    check: Check
    """Whether a signature (64 bytes) is of this key, over these bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token whose form is right and whose signature nobody has checked yet."""

    alg: str
    kid: str | None
    claims: Mapping[str, Any]
    signed: bytes
    """What the signature is over."""
    signature: bytes


def looks_like_token(text: str) -> bool:
    """Whether a password is meant as a token: three parts, the first of which begins as a JSON object does in base64url."""
    return text.startswith("eyJ") and text.count(".") == 2


def parse_token(text: str) -> Token:
    """Take a token apart. Raises NoIdentity `token-form` or `token-header`; its message never has a part of the token."""
    if len(text) > TOKEN_BYTES_MAX:
        raise NoIdentity("token-form", f"the token has {len(text)} bytes, limit is {TOKEN_BYTES_MAX}")
    parts = text.split(".")
    if len(parts) != 3:
        raise NoIdentity("token-form", f"the token has {len(parts)} parts, a compact jws has 3")
    header, claims = _object(parts[0], "header"), _object(parts[1], "payload")
    alg, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if named := sorted(FORBIDDEN & header.keys()):
        raise NoIdentity("token-header", f"the token's header has `{named[0]}`, which no token may have here")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise NoIdentity("token-header", f"the token's `alg` is none of {', '.join(ALGORITHMS)}")
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        raise NoIdentity("token-header", "the token's `typ` is neither `JWT` nor `at+jwt`")
    for hint in ("cty", "x5t", "x5t#S256"):  # not used, but what is wrong in form is wrong
        if hint in header and not isinstance(header[hint], str):
            raise NoIdentity("token-header", f"the token's `{hint}` is no text")
    if "kid" in header and (not isinstance(kid, str) or not 0 < len(kid) <= KID_CHARS_MAX):
        raise NoIdentity("token-header", f"the token's `kid` is no text of 1 to {KID_CHARS_MAX} characters")
    signature = _bytes(parts[2], "signature")
    if len(signature) != SIGNATURE_BYTES:
        raise NoIdentity("token-form", f"the token's signature has {len(signature)} bytes, not {SIGNATURE_BYTES}")
    return Token(alg=alg, kid=kid, claims=claims, signed=f"{parts[0]}.{parts[1]}".encode(), signature=signature)


def verify(token: Token, keys: Sequence[Key]) -> Key:
    """The key that has signed a token. `kid` says which; without it, there must be only one that fits.

    Raises NoIdentity `token-key` where no key, or more than one, may be meant, and `token-signature`.
    """
    curve = ALGORITHMS[token.alg]
    fit = [
        key for key in keys
        if key.curve == curve and key.alg in ("", token.alg) and (token.kid is None or key.kid == token.kid)
    ]  # fmt: skip
    if len(fit) != 1:
        what = "no key" if not fit else f"{len(fit)} keys"
        which = "no `kid`" if token.kid is None else f"the `kid` `{shown(token.kid)}`"
        raise NoIdentity("token-key", f"the token has {which}, and its issuer has {what} of that name and kind")
    if not fit[0].check(token.signature, token.signed):
        raise NoIdentity("token-signature", "the token's signature is not by its issuer's key over these bytes")
    return fit[0]


def twin_of(text: str) -> str:
    """The text of the same ES256 token with its signature's other form (r, n - s): both are good, a revocation means both.

    `text` is one that was verified.
    """
    head, _, last = text.rpartition(".")
    signature = _bytes(last, "signature")
    s = int.from_bytes(signature[32:], "big")
    return f"{head}.{_text(signature[:32] + (_P256_ORDER - s).to_bytes(32, 'big'))}"


# -- keys ----------------------------------------------------------------------------------------------------------------


def parse_jwks(data: bytes, name: str) -> tuple[Key, ...]:
    """The keys of a set that tokens can be checked with. Raises OperatorFault that begins with `name`.

    A key of another kind or for another use is left out, as RFC 7517 asks. Refused as a whole is a set that has a private or a
    symmetric key, a key that is no point of its curve, two keys of one name, or no key that is of any use.
    """
    if len(data) > JWKS_BYTES_MAX:
        raise OperatorFault(f"{name}: has {len(data)} bytes, limit is {JWKS_BYTES_MAX}")
    try:
        said = _json(data)
    except (ValueError, RecursionError) as fault:
        raise OperatorFault(f"{name}: is no key set: {_one_line(fault)}") from fault
    raw = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(raw, list) or not all(isinstance(one, dict) for one in raw):
        raise OperatorFault(f"{name}: is no key set: it has no array `keys` of objects")
    if len(raw) > KEYS_MAX:
        raise OperatorFault(f"{name}: has {len(raw)} keys, limit is {KEYS_MAX}")
    found: list[Key] = []
    for number, one in enumerate(raw):
        try:
            key = _key(one)
        except ValueError as fault:
            raise OperatorFault(f"{name}: keys[{number}]: {fault}") from fault
        if key is not None:
            found.append(key)
    for key in found:
        if sum(key.kid == other.kid and key.curve == other.curve for other in found) > 1 and key.kid:
            raise OperatorFault(f"{name}: two keys have the `kid` `{shown(key.kid)}`")
    if not found:
        raise OperatorFault(f"{name}: has no key for EdDSA (Ed25519) or ES256 signatures")
    return tuple(found)


def _key(said: Mapping[str, Any]) -> Key | None:
    """One key; None for one that is of no use here. Raises ValueError."""
    if private := sorted(_PRIVATE & said.keys()):
        raise ValueError(f"has `{private[0]}`: a private or shared key has no place among public ones")
    for member in ("kty", "kid", "alg", "use", "crv"):
        if member in said and not isinstance(said[member], str):
            raise ValueError(f"`{member}` is no text")
    uses = said.get("key_ops", ["verify"])
    if not isinstance(uses, list) or not all(isinstance(use, str) for use in uses) or len(set(uses)) != len(uses):
        raise ValueError("`key_ops` is no array of different texts")
    kind, curve, kid, alg = said.get("kty"), said.get("crv", ""), said.get("kid", ""), said.get("alg", "")
    if (kind, curve) not in (("OKP", "Ed25519"), ("EC", "P-256")) or said.get("use", "sig") != "sig" or "verify" not in uses:
        return None
    if alg and ALGORITHMS.get(alg) != curve:
        return None
    if len(kid) > KID_CHARS_MAX:
        raise ValueError(f"`kid` has {len(kid)} characters, limit is {KID_CHARS_MAX}")
    x = _coordinate(said, "x")
    if kind == "OKP":
        print_of, check = {"crv": curve, "kty": kind, "x": said["x"]}, _ed25519(x)
    else:
        print_of = {"crv": curve, "kty": kind, "x": said["x"], "y": said.get("y")}
        check = _es256(x, _coordinate(said, "y"))
    return Key(curve=curve, kid=kid, alg=alg, thumbprint=_text(hashlib.sha256(canonical(print_of)).digest()), check=check)


def _coordinate(said: Mapping[str, Any], member: str) -> bytes:
    value = said.get(member)
    try:
        if isinstance(value, str) and len(found := _decoded(value)) == 32:
            return found
    except ValueError:
        pass
    raise ValueError(f"`{member}` is not 32 bytes in base64url")


def _ed25519(x: bytes) -> Check:
    key = Ed25519PublicKey.from_public_bytes(x)

    def check(signature: bytes, signed: bytes) -> bool:
        try:
            key.verify(signature, signed)
        except InvalidSignature:
            return False
        return True

    return check


def _es256(x: bytes, y: bytes) -> Check:
    try:
        key = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), SECP256R1()).public_key()
    except ValueError as fault:
        raise ValueError("is no point of P-256") from fault

    def check(signature: bytes, signed: bytes) -> bool:
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER):
            return False
        try:
            key.verify(encode_dss_signature(r, s), signed, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    return check


# -- base64url and JSON ----------------------------------------------------------------------------------------------------


def _decoded(text: str) -> bytes:
    """Base64url without padding. Raises ValueError for any but the one spelling: also for bits that mean nothing."""
    if not _ALPHABET.issuperset(text) or len(text) % 4 == 1:
        raise ValueError("not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _text(data) != text:
        raise ValueError("not base64url in its one spelling")
    return data


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str, what: str) -> bytes:
    try:
        return _decoded(text)
    except (ValueError, binascii.Error):
        raise NoIdentity("token-form", f"the token's {what} is not base64url without padding, in its one spelling") from None


def _object(text: str, what: str) -> dict[str, Any]:
    data = _bytes(text, what)
    try:
        value = _json(data)
        if isinstance(value, dict):
            return value
    except (ValueError, RecursionError):
        pass  # its message may have a part of the token
    raise NoIdentity("token-form", f"the token's {what} is no json object, or one with a member twice") from None


def _json(data: bytes) -> Any:
    """Raises ValueError for what is no UTF-8 or no JSON, and for a member that stands twice in an object."""
    return json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of json")


def _one_line(fault: BaseException) -> str:
    text = str(fault) or type(fault).__name__
    return f"{text[:1].lower()}{text[1:]}".partition("\n")[0]
