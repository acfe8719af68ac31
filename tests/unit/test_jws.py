"""Tokens and key sets: what is good is read, everything else is refused for a reason, and never for a guess."""

import json
from typing import Any

import pytest

from enforcers.core.caller import NoIdentity
from enforcers.core.jws import (
    JWKS_BYTES_MAX,
    TOKEN_BYTES_MAX,
    looks_like_token,
    parse_jwks,
    parse_token,
    twin_of,
    verify,
)
from schemas.errors import OperatorFault
from tests.support.tokens import EC, ED, Ed25519Key, Es256Key, b64, b64json, claims, jwks, token

KEYS = parse_jwks(jwks(ED, EC), "keys")
GOOD_HEAD = {"alg": "EdDSA", "kid": "ed"}


def read(text: str) -> Any:
    parsed = parse_token(text)
    return verify(parsed, KEYS), parsed.claims


def code_of(text: str) -> str:
    with pytest.raises(NoIdentity) as caught:
        read(text)
    fault = caught.value
    assert fault.status == 407
    assert "\n" not in str(fault)
    parts = text.split(".")
    assert not any(len(part) > 12 and part in str(fault) for part in parts), "a part of the token is in the message"
    return fault.code


def signed(header: Any, key: Any = ED) -> str:
    return token(key=key, header=header)


@pytest.mark.parametrize("key", [ED, EC])
def test_a_good_token_is_read(key: Any) -> None:
    found, said = read(token(key=key))
    assert (found.kid, said) == (key.kid, claims())


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"])
def test_a_token_may_say_that_it_is_one(kind: str) -> None:
    assert read(signed({**GOOD_HEAD, "typ": kind}))[1] == claims()


def test_header_members_that_change_nothing_are_passed_over() -> None:
    assert read(signed({**GOOD_HEAD, "cty": "x", "x5t": "y", "more": [1]}))[1] == claims()


def test_ed25519_has_two_names() -> None:
    assert read(signed({"alg": "Ed25519", "kid": "ed"}))[0].kid == "ed"


HEAD, BODY, TAIL = token().split(".")
FORMS = {
    "empty": "",
    "no part": "abc",
    "two parts": f"{HEAD}.{BODY}",
    "four parts": f"{HEAD}.{BODY}.{TAIL}.",
    "five parts, an encrypted one": f"{HEAD}..{BODY}.{TAIL}.{TAIL}",
    "an empty header": f".{BODY}.{TAIL}",
    "an empty payload": f"{HEAD}..{TAIL}",
    "an empty signature": f"{HEAD}.{BODY}.",
    "padding": f"{HEAD}.{BODY}.{TAIL}==",
    "the other alphabet": f"{HEAD}.{BODY}.+{TAIL[1:]}",
    "a space": f"{HEAD}.{BODY}.{TAIL} ",
    "a line feed": f"{HEAD}.{BODY}.{TAIL}\n",
    "bits that mean nothing": f"{HEAD}.{BODY}.{TAIL[:-1]}{chr(ord(TAIL[-1]) + 1)}",
    "a short signature": f"{HEAD}.{BODY}.{b64(bytes(63))}",
    "a long signature": f"{HEAD}.{BODY}.{b64(bytes(65))}",
    "no ascii": f"{HEAD}.{BODY}.é{TAIL[1:]}",
    "a digit of another script": f"{HEAD}.{BODY}.\N{ARABIC-INDIC DIGIT ONE}{TAIL[1:]}",
    "too long": token(claims(pad="x" * TOKEN_BYTES_MAX)),
    "a header that is no json": token(raw_header=b"{"),
    "a header that is a list": token(raw_header=b"[]"),
    "a header that is a text": token(raw_header=b'"alg"'),
    "a header that is null": token(raw_header=b"null"),
    "a header with a member twice": token(raw_header=b'{"alg":"EdDSA","kid":"ed","alg":"EdDSA"}'),
    "a header with a member twice, deep": token(raw_header=b'{"alg":"EdDSA","kid":"ed","a":{"b":1,"b":1}}'),
    "a header with a byte order mark": token(raw_header=b'\xef\xbb\xbf{"alg":"EdDSA","kid":"ed"}'),
    "a header in utf-16": token(raw_header='{"alg":"EdDSA","kid":"ed"}'.encode("utf-16")),
    "a header in latin-1": token(raw_header=b'{"alg":"EdDSA","kid":"ed","a":"\xe9"}'),
    "a payload that is no json": token(raw_payload=b"x"),
    "a payload that is a list": token(raw_payload=b"[1]"),
    "a payload with a claim twice": token(raw_payload=b'{"iss":"a","iss":"b"}'),
    "a payload with NaN": token(raw_payload=b'{"exp":NaN}'),
    "a payload with Infinity": token(raw_payload=b'{"exp":Infinity}'),
    "a payload with something behind it": token(raw_payload=b"{}{}"),
    "a payload with a number of 5,000 digits": token(raw_payload=b'{"exp":' + b"9" * 5_000 + b"}"),
    "a payload nested 6,000 deep": token(raw_payload=b'{"a":' + b"[" * 6_000 + b"]" * 6_000 + b"}"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_token_of_no_good_form_is_refused(name: str) -> None:
    assert code_of(FORMS[name]) == "token-form"


HEADERS: dict[str, dict[str, Any]] = {
    "no alg": {"kid": "ed"},
    "alg none": {"alg": "none", "kid": "ed"},
    "alg None": {"alg": "None", "kid": "ed"},
    "alg null": {"alg": None, "kid": "ed"},
    "alg as a list": {"alg": ["EdDSA"], "kid": "ed"},
    "alg HS256": {"alg": "HS256", "kid": "ed"},
    "alg RS256": {"alg": "RS256", "kid": "ed"},
    "alg ES384": {"alg": "ES384", "kid": "ed"},
    "alg in other case": {"alg": "eddsa", "kid": "ed"},
    "alg of an encryption": {"alg": "RSA-OAEP", "enc": "A256GCM", "kid": "ed"},
    "crit": {**GOOD_HEAD, "crit": ["exp"]},
    "an empty crit": {**GOOD_HEAD, "crit": []},
    "b64": {**GOOD_HEAD, "b64": False, "crit": ["b64"]},
    "b64 alone": {**GOOD_HEAD, "b64": True},
    "jwk": {**GOOD_HEAD, "jwk": ED.jwk()},
    "jku": {**GOOD_HEAD, "jku": "https://attacker.example/keys"},
    "x5u": {**GOOD_HEAD, "x5u": "https://attacker.example/cert"},
    "x5c": {**GOOD_HEAD, "x5c": ["MII"]},
    "zip": {**GOOD_HEAD, "zip": "DEF"},
    "typ of a transaction token": {**GOOD_HEAD, "typ": "txntoken+jwt"},
    "typ of a proof": {**GOOD_HEAD, "typ": "dpop+jwt"},
    "typ of a workload token": {**GOOD_HEAD, "typ": "wit+jwt"},
    "typ that is no text": {**GOOD_HEAD, "typ": 1},
    "cty that is no text": {**GOOD_HEAD, "cty": 1},
    "typ null": {**GOOD_HEAD, "typ": None},
    "kid that is a number": {"alg": "EdDSA", "kid": 1},
    "kid null": {"alg": "EdDSA", "kid": None},
    "an empty kid": {"alg": "EdDSA", "kid": ""},
    "a long kid": {"alg": "EdDSA", "kid": "k" * 257},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_says_more_or_less_than_it_may_is_refused(name: str) -> None:
    assert code_of(signed(HEADERS[name])) == "token-header"


def test_a_kid_says_which_key_and_nothing_else_does() -> None:
    assert code_of(signed({"alg": "EdDSA", "kid": "other"})) == "token-key"
    assert code_of(signed({"alg": "EdDSA", "kid": "ec"})) == "token-key", "the key of that name is of another kind"
    assert code_of(signed({"alg": "ES256", "kid": "ed"}, EC)) == "token-key"
    assert code_of(signed({"alg": "EdDSA", "kid": "ed"}, Ed25519Key("stranger"))) == "token-signature"


def test_without_a_kid_there_must_be_one_key_that_fits() -> None:
    assert read(signed({"alg": "EdDSA"}))[0].kid == "ed"
    two = parse_jwks(jwks(ED, Ed25519Key("ed2")), "keys")
    with pytest.raises(NoIdentity, match="2 keys"):
        verify(parse_token(signed({"alg": "EdDSA"})), two)


def test_a_key_that_says_its_algorithm_is_for_no_other() -> None:
    keys = parse_jwks(jwks(ED.jwk(alg="Ed25519")), "keys")
    assert verify(parse_token(signed({"alg": "Ed25519", "kid": "ed"})), keys).kid == "ed"
    with pytest.raises(NoIdentity) as caught:
        verify(parse_token(signed({"alg": "EdDSA", "kid": "ed"})), keys)
    assert caught.value.code == "token-key"


@pytest.mark.parametrize("key", [ED, EC])
def test_no_bit_of_a_token_can_be_changed(key: Any) -> None:
    head, body, tail = (bytearray(part.encode()) for part in token(key=key).split("."))
    for part in (head, body, tail):
        for at in range(len(part)):
            was, part[at] = part[at], part[at] ^ 1
            code_of(f"{head.decode()}.{body.decode()}.{tail.decode()}")
            part[at] = was
    read(f"{head.decode()}.{body.decode()}.{tail.decode()}")


@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64, bytes(32) + b"\x01" * 32, b"\x01" * 32 + bytes(32)])
@pytest.mark.parametrize("key", [ED, EC])
def test_signatures_of_zeros_and_ones_are_refused(key: Any, signature: bytes) -> None:
    head, body, _ = token(key=key).split(".")
    assert code_of(f"{head}.{body}.{b64(signature)}") == "token-signature"


def test_the_twin_of_an_es256_token_is_its_only_other_text() -> None:
    text = token(key=EC)
    other = twin_of(text)
    assert other != text
    assert read(other)[1] == read(text)[1]
    assert twin_of(other) == text


def test_a_token_is_told_from_a_secret() -> None:
    assert looks_like_token(token())
    assert not any(map(looks_like_token, ("", "a.b.c", "eyJ", "eyJhbGciOiJ", "eyJ.x", "eyJ.a.b.c", "x" * 43)))


# -- key sets ------------------------------------------------------------------------------------------------------------

RSA = {"kty": "RSA", "kid": "rsa", "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSo",
       "e": "AQAB"}  # fmt: skip


def test_keys_of_no_use_are_left_out() -> None:
    others: list[dict[str, Any]] = [
        RSA, ED.jwk(kid="enc", use="enc"), ED.jwk(kid="ops", key_ops=["sign"]), EC.jwk(kid="alg", alg="ES384"),
        EC.jwk(kid="crv", crv="P-384"), {"kty": "OKP", "crv": "X25519", "x": b64(bytes(32))}, {"kty": "new"}, {"kid": "none"},
    ]  # fmt: skip
    keys = parse_jwks(jwks(*others, ED.jwk(use="sig", alg="EdDSA", key_ops=["verify"]), EC), "keys")
    assert [key.kid for key in keys] == ["ed", "ec"]


def test_thumbprints_are_those_of_the_standards() -> None:
    """RFC 8037, appendix A.3, and the key of RFC 9449."""
    rfc8037 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    rfc9449 = {"kty": "EC", "crv": "P-256", "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
               "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"}  # fmt: skip
    prints = [key.thumbprint for key in parse_jwks(jwks(rfc8037, rfc9449), "keys")]
    assert prints == ["kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k", "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"]


def _jwk(**more: Any) -> bytes:
    return jwks(EC, {**ED.jwk(), **more})


SETS = {
    "no json": (b"{", "is no key set: expecting property name"),
    "no object": (b"[]", "is no key set: it has no array `keys` of objects"),
    "one key that is no set": (json.dumps(ED.jwk()).encode(), "it has no array `keys`"),
    "keys that are no array": (b'{"keys":{}}', "it has no array `keys`"),
    "a key that is no object": (b'{"keys":[1]}', "it has no array `keys`"),
    "a member twice": (b'{"keys":[],"keys":[]}', "is no key set: a member stands twice"),
    "no key": (b'{"keys":[]}', "has no key for EdDSA (Ed25519) or ES256 signatures"),
    "no key of use": (jwks(RSA), "has no key for EdDSA"),
    "a private key": (_jwk(d=b64(bytes(32))), "keys[1]: has `d`: a private or shared key has no place among public ones"),
    "a private key of no use": (jwks(EC, {**RSA, "d": "x"}), "keys[1]: has `d`"),
    "a shared key": (jwks(EC, {"kty": "oct", "k": b64(b"secret")}), "keys[1]: has `k`"),
    "an empty shared key": (jwks(EC, {"kty": "oct", "k": ""}), "keys[1]: has `k`"),
    "a kid that is no text": (_jwk(kid=1), "keys[1]: `kid` is no text"),
    "a long kid": (_jwk(kid="k" * 257), "keys[1]: `kid` has 257 characters, limit is 256"),
    "a use that is no text": (_jwk(use=["sig"]), "keys[1]: `use` is no text"),
    "an alg that is no text": (_jwk(alg=None), "keys[1]: `alg` is no text"),
    "key_ops that is no array": (_jwk(key_ops="verify"), "keys[1]: `key_ops` is no array of different texts"),
    "key_ops with one twice": (_jwk(key_ops=["verify", "verify"]), "keys[1]: `key_ops` is no array of different texts"),
    "no x": (jwks({"kty": "OKP", "crv": "Ed25519"}), "keys[0]: `x` is not 32 bytes in base64url"),
    "an x with padding": (_jwk(x=ED.jwk()["x"] + "="), "keys[1]: `x` is not 32 bytes"),
    "an x of 31 bytes": (_jwk(x=b64(bytes(31))), "keys[1]: `x` is not 32 bytes"),
    "an x that is no text": (_jwk(x=7), "keys[1]: `x` is not 32 bytes"),
    "no point of the curve": (jwks({**EC.jwk(), "y": EC.jwk()["x"]}), "keys[0]: is no point of P-256"),
    "a point at zero": (jwks({**EC.jwk(), "x": b64(bytes(32)), "y": b64(bytes(32))}), "keys[0]: is no point of P-256"),
    "no y": (jwks({name: value for name, value in EC.jwk().items() if name != "y"}), "keys[0]: `y` is not 32 bytes"),
    "two keys of one name": (jwks(ED, Ed25519Key("other").jwk(kid="ed")), "two keys have the `kid` `ed`"),
    "too many": (jwks(*[RSA] * 257), "has 257 keys, limit is 256"),
    "too long": (b" " * (JWKS_BYTES_MAX + 1), f"has {JWKS_BYTES_MAX + 1} bytes, limit is {JWKS_BYTES_MAX}"),
    "no utf-8": (b'{"keys":["\xff"]}', "is no key set: 'utf-8' codec can't decode"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_cannot_be_what_was_meant_is_refused_as_a_whole(name: str) -> None:
    data, expected = SETS[name]
    with pytest.raises(OperatorFault) as caught:
        parse_jwks(data, "/etc/idp.json")
    assert str(caught.value).startswith("/etc/idp.json: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_kinds_of_key_may_have_one_name() -> None:
    keys = parse_jwks(jwks(ED.jwk(kid="k"), EC.jwk(kid="k")), "keys")
    assert verify(parse_token(signed({"alg": "ES256", "kid": "k"}, EC)), keys).curve == "P-256"


def test_es256_keys_are_not_mixed_up() -> None:
    keys = parse_jwks(jwks(EC, Es256Key("ec2")), "keys")
    with pytest.raises(NoIdentity, match="signature"):
        verify(parse_token(signed({"alg": "ES256", "kid": "ec2"}, EC)), keys)


def test_a_header_is_read_as_it_was_signed() -> None:
    """The bytes are checked, not what a second writing of the same JSON would give."""
    spaced = b'{ "kid" : "ed" , "alg" : "EdDSA" }'
    assert read(token(raw_header=spaced))[1] == claims()
    head, body, tail = token(raw_header=spaced).split(".")
    assert code_of(f"{b64json({'kid': 'ed', 'alg': 'EdDSA'})}.{body}.{tail}") == "token-signature"
    assert head == b64(spaced)
