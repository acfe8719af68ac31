"""Tokens and key sets that an issuer would make, and a host's agents for them: built from bytes, with no JOSE library."""

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from schemas.agents import Agent, Agents, encode, parse

ISSUER, AUDIENCE = "https://idp.example", "https://egress.example"
NOW_S = 1_800_000_000


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64json(value: Any) -> str:
    return b64(json.dumps(value, separators=(",", ":")).encode())


class Ed25519Key:
    """An issuer's key, made from a word."""

    alg = "EdDSA"

    def __init__(self, word: str) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(word.encode()).digest())
        self.kid = word

    def jwk(self, **more: Any) -> dict[str, Any]:
        raw = self.private.public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": b64(raw), **more}

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


class Es256Key:
    """The same on P-256."""

    alg = "ES256"

    def __init__(self, word: str) -> None:
        number = int.from_bytes(hashlib.sha256(word.encode()).digest(), "big") >> 1
        self.private: EllipticCurvePrivateKey = derive_private_key(number, SECP256R1())
        self.kid = word

    def jwk(self, **more: Any) -> dict[str, Any]:
        numbers = self.private.public_key().public_numbers()
        x, y = (b64(part.to_bytes(32, "big")) for part in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "kid": self.kid, "x": x, "y": y, **more}

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.private.sign(data, ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


ED, EC = Ed25519Key("ed"), Es256Key("ec")


def claims(**more: Any) -> dict[str, Any]:
    """Of a good token of agent `researcher`; None takes a claim out."""
    said = {"iss": ISSUER, "sub": "r-17", "aud": AUDIENCE, "exp": NOW_S + 600, "iat": NOW_S - 5, **more}
    return {name: value for name, value in said.items() if value is not None}


def token(
    said: Any = None, *, key: Any = ED, header: dict[str, Any] | None = None, raw_header: bytes | None = None,
    raw_payload: bytes | None = None,
) -> str:  # fmt: skip
    """A token; `raw_*` are signed as they are, `header` replaces what a token usually has."""
    head = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"} if header is None else header
    first = b64json(head) if raw_header is None else b64(raw_header)
    second = b64json(claims() if said is None else said) if raw_payload is None else b64(raw_payload)
    return f"{first}.{second}.{b64(key.sign(f'{first}.{second}'.encode()))}"


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": [key if isinstance(key, dict) else key.jwk() for key in keys]}).encode()


def agents(**subs: str) -> Agents:
    """Agents by name, each with one subject of ISSUER."""
    made = [Agent(name=name, owner="o", secret="", subs=((ISSUER, sub),)) for name, sub in subs.items()]
    return parse(encode(made, 1), "agents.json")
