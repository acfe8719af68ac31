"""Two libraries as oracles: whatever our reader of tokens accepts, joserfc and jwcrypto accept too, with the same claims.

Ours refuses more: that is its purpose. So the law is one way, and a count says that the mutations reach both sides of it.
Header members that nobody knows are passed over by all three, as RFC 7515 asks; joserfc must be told so.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jwcrypto.jwk  # type: ignore[import-untyped]
import jwcrypto.jwt  # type: ignore[import-untyped]
import pytest
from joserfc import jwt as joserfc_jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from enforcers.core.caller import NoIdentity
from enforcers.core.claims import caller_of, check_claims, issuer_of
from enforcers.core.jws import ALGORITHMS, parse_jwks, parse_token, verify
from tests.support.tokens import AUDIENCE, EC, ED, ISSUER, NOW_S, Ed25519Key, agents, b64, claims, jwks, token

SET = jwks(ED, EC)
OURS = parse_jwks(SET, "keys")
JOSERFC = KeySet.import_key_set(json.loads(SET))
JWCRYPTO = jwcrypto.jwk.JWKSet.from_json(SET.decode())
BY_CURVE = {key["crv"]: key for key in JOSERFC.keys}
AGENTS = agents(researcher="r-17", planner="p-3")
CLOCK = SimpleNamespace(time=lambda: NOW_S)

MUTATIONS = 5_000
MUTATIONS_SOAK = 200_000


def ours(text: str) -> dict[str, Any] | None:
    try:
        parsed = parse_token(text)
        if issuer_of(parsed.claims) != ISSUER:
            return None
        verify(parsed, OURS)
        check_claims(parsed.claims, audience=AUDIENCE, now_s=NOW_S)
        caller_of(parsed.claims, AGENTS, issuer=ISSUER, until_s=0, issued_s=0, token="", key="")
    except NoIdentity:
        return None
    return dict(parsed.claims)


def _key(token: Any) -> Any:
    """The key of the token's `kid`; without one, joserfc wants to be told: the only one of its kind, as for us."""
    header = token.headers()
    return JOSERFC.get_by_kid(header["kid"]) if "kid" in header else BY_CURVE[ALGORITHMS[header["alg"]]]


def joserfc_says(text: str) -> dict[str, Any] | None:
    rules = joserfc_jwt.JWTClaimsRegistry(
        now=NOW_S, iss={"essential": True, "value": ISSUER}, aud={"essential": True, "value": AUDIENCE}, exp={"essential": True}
    )
    try:
        found = joserfc_jwt.decode(text, _key, registry=JWSRegistry(algorithms=list(ALGORITHMS), strict_check_header=False))
        rules.validate(found.claims)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return found.claims


def jwcrypto_says(text: str) -> dict[str, Any] | None:
    with patch("jwcrypto.jwt.time", CLOCK):
        try:
            made = jwcrypto.jwt.JWT(
                jwt=text, key=JWCRYPTO, algs=["EdDSA", "ES256"], expected_type="JWS",
                check_claims={"iss": ISSUER, "aud": AUDIENCE, "exp": None},
            )  # fmt: skip
        except Exception:  # whatever it raises, it does not accept
            return None
        return dict(json.loads(made.claims))


# -- mutations -----------------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**53, 1e308, "", "0", [], {}, [ISSUER], [AUDIENCE], {"a": 1}, NOW_S, NOW_S - 1, NOW_S + 1,
    NOW_S + 0.5, "EdDSA", "ES256", "none", "HS256", "JWT", "at+jwt", "ed", "ec", ISSUER, AUDIENCE, ["exp"], "\u0000", "ISS",
)  # fmt: skip
HEADER_NAMES = ("alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c", "zip", "cty", "enc", "x5t", "p2c", "iat")
CLAIM_NAMES = ("iss", "aud", "exp", "nbf", "iat", "sub", "jti", "act", "cnf", "more")


def altered(chance: random.Random, said: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """One or two members more, less, or other."""
    found = dict(said)
    for _ in range(1 + chance.randrange(2)):
        name = chance.choice(names)
        if chance.random() < 0.3:
            found.pop(name, None)
        else:
            found[name] = chance.choice(ODD)
    return found


def scribbled(chance: random.Random, data: bytes) -> bytes:
    """JSON in another spelling, or no JSON at all."""
    at = chance.randrange(len(data) + 1)
    bit = chance.choice([b'"a":1,', b",", b"}", b"\xff", b"\\u0061", b"\0"])
    return chance.choice([
        data[:at] + b" " + data[at:], data[:at] + bit + data[at:],
        data.replace(b'"', b"'"), b"\xef\xbb\xbf" + data, data + b" ", data.replace(b",", b" ,\n"), data[:at] + data[at + 1 :],
        data[:1] + data[1:-1] + b"," + data[1:], data.decode().encode("utf-16"),
    ])  # fmt: skip


KINDS = ("header", "claims", "both", "spelling of the header", "spelling of the claims", "text", "parts", "key")


def mutated(chance: random.Random) -> tuple[str, str]:
    """A kind of mutation, and a token: most are signed with the right key, so that the signature hides nothing."""
    key = chance.choice((ED, EC))
    head, body = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"}, claims()
    text = token(body, key=key, header=head)
    kind = chance.choice(KINDS)
    if kind == "header":
        return kind, token(body, key=key, header=altered(chance, head, HEADER_NAMES))
    if kind == "claims":
        return kind, token(altered(chance, body, CLAIM_NAMES), key=key, header=head)
    if kind == "both":
        header = altered(chance, head, HEADER_NAMES)
        return kind, token(altered(chance, body, CLAIM_NAMES), key=key, header=header)
    if kind == "spelling of the header":
        return kind, token(body, key=key, raw_header=scribbled(chance, json.dumps(head).encode()))
    if kind == "spelling of the claims":
        return kind, token(key=key, header=head, raw_payload=scribbled(chance, json.dumps(body).encode()))
    if kind == "text":
        at = chance.randrange(len(text))
        new = chance.choice("AZaz09-_=.+/ \n")
        return kind, text[:at] + chance.choice([new, "", new + text[at]]) + text[at + 1 :]
    if kind == "parts":
        parts = text.split(".")
        other = token(claims(sub="p-3"), key=chance.choice((ED, EC))).split(".")
        return kind, ".".join(chance.choice((one, two)) for one, two in zip(parts, other, strict=True))
    other_key = chance.choice((Ed25519Key("stranger"), ED, EC))
    return kind, token(body, key=other_key, header=head)


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize(
    "mutations", [MUTATIONS, pytest.param(MUTATIONS_SOAK, marks=(pytest.mark.soak, pytest.mark.timeout(3_600)))]
)
def test_nothing_is_accepted_that_an_oracle_refuses(mutations: int) -> None:
    chance = random.Random(mutations)
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    stricter = 0
    for number in range(mutations):
        kind, text = mutated(chance)
        said = ours(text)
        if said is None:
            refused[kind] += 1
            stricter += number % 10 == 0 and (joserfc_says(text) is not None or jwcrypto_says(text) is not None)
            continue
        accepted[kind] += 1
        assert said == joserfc_says(text), f"joserfc refuses, or reads otherwise: {text}"
        if parse_token(text).alg in ("EdDSA", "ES256"):  # jwcrypto does not know the name `Ed25519`
            assert said == jwcrypto_says(text), f"jwcrypto refuses, or reads otherwise: {text}"
    assert set(refused) == set(KINDS)
    assert set(accepted) >= set(KINDS) - {"text"}, "a kind of mutation that never leaves a good token proves little"
    assert sum(accepted.values()) > mutations // 20
    assert stricter > 20, "ours was never the stricter one"


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("says", [ours, joserfc_says, jwcrypto_says])
def test_all_three_read_a_good_token(says: Callable[[str], dict[str, Any] | None]) -> None:
    for key in (ED, EC):
        assert says(token(key=key)) == claims()
        head, body, tail = token(key=key).split(".")
        assert says(f"{head}.{body}.{b64(b'x' * 64)}") is None
        assert tail
