"""What other readers of tokens once got wrong, one test each: none of it is so here."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from enforcers.core.caller import NoIdentity
from enforcers.core.claims import issuer_of
from enforcers.core.jws import parse_jwks, parse_token, verify
from schemas.errors import OperatorFault
from tests.support.tokens import EC, ED, ISSUER, Ed25519Key, b64, b64json, claims, jwks, token

KEYS = parse_jwks(jwks(ED, EC), "keys")


def code(text: str) -> str:
    with pytest.raises(NoIdentity) as caught:
        verify(parse_token(text), KEYS)
    return caught.value.code


def test_a_key_in_the_header_is_never_the_key_that_is_used() -> None:
    """CVE-2026-27962: a reader without a key of its own trusted the header's `jwk`."""
    attacker = Ed25519Key("attacker")
    own = {"alg": "EdDSA", "typ": "JWT", "jwk": attacker.jwk()}
    assert code(token(key=attacker, header=own)) == "token-header"
    with pytest.raises(NoIdentity) as caught:  # an issuer without keys, as while its file cannot be read
        verify(parse_token(token(key=attacker, header={"alg": "EdDSA", "kid": "attacker"})), ())
    assert caught.value.code == "token-key"


def test_an_extension_that_must_be_understood_is_not_passed_over() -> None:
    """CVE-2026-32597: `crit` was ignored."""
    for crit in (["x"], ["b64"], ["exp"], [], "x", None):
        assert code(token(header={"alg": "EdDSA", "kid": "ed", "crit": crit, "x": 1})) == "token-header"


def test_a_public_key_is_no_shared_secret() -> None:
    """CVE-2026-48526: a token with HS256, keyed with the public key's bytes, was accepted."""
    for secret in (jwks(ED), json.dumps(ED.jwk()).encode(), ED.private.public_key().public_bytes_raw()):
        for alg in ("HS256", "HS384", "HS512"):
            body = f"{b64json({'alg': alg, 'kid': 'ed'})}.{b64json(claims())}"
            made = hmac.new(secret, body.encode(), getattr(hashlib, f"sha{alg[2:]}")).digest()
            assert code(f"{body}.{b64(made)}") == "token-header"
    body = f"{b64json({'alg': 'EdDSA', 'kid': 'ec'})}.{b64json(claims())}"
    assert code(f"{body}.{b64(ED.sign(body.encode()))}") == "token-key", "a key of one kind is not used as one of another"


@pytest.mark.parametrize("issuer", [[ISSUER], [[ISSUER]], {ISSUER: 1}, [ISSUER, "https://attacker.example"]])
def test_an_issuer_in_a_list_is_not_that_issuer(issuer: Any) -> None:
    """CVE-2026-75509: a list with the right issuer in it passed."""
    with pytest.raises(NoIdentity) as caught:
        issuer_of(parse_token(token(claims(iss=issuer))).claims)
    assert caught.value.code == "token-claims"


def test_an_empty_key_signs_nothing() -> None:
    """CVE-2026-49852: a token with an HMAC under the empty key was accepted."""
    body = f"{b64json({'alg': 'HS256'})}.{b64json(claims())}"
    assert code(f"{body}.{b64(hmac.new(b'', body.encode(), hashlib.sha256).digest())}") == "token-header"
    for empty in ({"kty": "oct", "k": ""}, {"kty": "oct", "k": "", "kid": "ed"}):
        with pytest.raises(OperatorFault, match="`k`"):
            parse_jwks(jwks(ED, empty), "keys")


def test_no_signature_is_no_signature() -> None:
    """The oldest of them: `none`, in whatever spelling, with or without a signature."""
    for alg in ("none", "None", "NONE", "nOnE", "", None):
        for tail in ("", b64(bytes(64))):
            assert code(f"{b64json({'alg': alg})}.{b64json(claims())}.{tail}") == "token-header"
