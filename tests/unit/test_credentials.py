"""The one credential of a request: what is read, what is refused, and under which name it is counted."""

import base64

import pytest

from enforcers.core.caller import NoIdentity
from enforcers.core.credentials import HIDDEN, Basic, Token, claimed_name, read
from tests.support.tokens import token

FIELD = b"proxy-authorization"


def basic(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return b"Basic " + base64.b64encode(raw)


def of(value: bytes) -> Basic | Token:
    return read([(b"host", b"a"), (FIELD, value), (b"authorization", b"Basic not:ours")])


GOOD = {
    "a secret": (basic("a:s3cret"), Basic(user="a", name="a", session="", password="s3cret")),
    "a session": (basic("a+one:s"), Basic(user="a+one", name="a", session="one", password="s")),
    "a session with a plus": (basic("a+b+c:s"), Basic(user="a+b+c", name="a", session="b+c", password="s")),
    "an empty session": (basic("a+:s"), Basic(user="a+", name="a", session="", password="s")),
    "a secret with colons": (basic("a:b:c"), Basic(user="a", name="a", session="", password="b:c")),
    "names that are no ascii": (basic("ré+sé:sé"), Basic(user="ré+sé", name="ré", session="sé", password="sé")),
    "a scheme in other case": (basic("a:s").replace(b"Basic", b"bASIC"), Basic(user="a", name="a", session="", password="s")),
    "more spaces": (basic("a:s").replace(b" ", b"   "), Basic(user="a", name="a", session="", password="s")),
    "a token for a secret": (basic(f"a+s:{token()}"), Token(user="a+s", name="a", session="s", text=token())),
    "a bearer token": (b"Bearer " + token().encode(), Token(text=token())),
    "a bearer of another form": (b"bearer abc", Token(text="abc")),
    "the longest names": (basic(f"{'a' * 256}+{'b' * 256}:s"), Basic(user=f"{'a' * 256}+{'b' * 256}", name="a" * 256,
                                                                      session="b" * 256, password="s")),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_credential_is_read(name: str) -> None:
    value, expected = GOOD[name]
    assert of(value) == expected


BAD = {
    "nothing": (b"", "form", ""),
    "a scheme alone": (b"Basic", "form", ""),
    "a scheme and a space": (b"Basic ", "form", ""),
    "no scheme": (base64.b64encode(b"a:s"), "scheme", ""),
    "another scheme": (b"Digest username=a", "form", ""),
    "another scheme with a token": (b"Negotiate YII", "scheme", ""),
    "proof of possession": (b"DPoP " + token().encode(), "scheme", ""),
    "two tokens": (basic("a:s") + b" x", "form", ""),
    "two credentials in one": (basic("a:s") + b", " + basic("b:s"), "form", ""),
    "a tab": (basic("a:s").replace(b" ", b"\t"), "form", ""),
    "a space before": (b" " + basic("a:s"), "form", ""),
    "no base64": (b"Basic a:s", "form", ""),
    "base64 cut off": (b"Basic YTpzM2NyZXQ", "form", ""),
    "base64 in another alphabet": (b"Basic YTo_Pz8=", "form", ""),
    "base64 with bits that mean nothing": (b"Basic YTpzMR==", "form", ""),
    "base64 with too much padding": (b"Basic YTpz====", "form", ""),
    "no utf-8": (basic(b"a:\xff"), "form", ""),
    "no colon": (basic("secret"), "form", ""),
    "no agent": (basic(":s"), "form", ""),
    "no agent but a session": (basic("+x:s"), "form", ""),
    "no secret": (basic("a:"), "form", "a"),
    "a long name": (basic(f"{'a' * 257}:s"), "form", "a" * 57 + "..."),
    "a long session": (basic(f"a+{'b' * 257}:s"), "form", "a"),
    "a name with a line feed": (basic("a\nb:s"), "form", "a\\nb"),
    "a name with the mark between principals": (basic("a\x1fb:s"), "form", "a\\x1fb"),
    "a session with a zero": (basic("a+\0:s"), "form", "a"),
    "a long secret": (basic(f"a:{'s' * 1025}"), "form", "a"),
    "a value without end": (b"Basic " + b"A" * 40_000, "form", ""),
    "an empty bearer": (b"Bearer ", "form", ""),
    "a bearer with a space": (b"Bearer a b", "form", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_credential_is_refused(name: str) -> None:
    value, code, claimed = BAD[name]
    with pytest.raises(NoIdentity) as caught:
        of(value)
    assert (caught.value.code, caught.value.claimed, caught.value.status) == (code, claimed, 407)
    assert str(caught.value).isprintable()


def test_a_request_has_exactly_one() -> None:
    with pytest.raises(NoIdentity) as none:
        read([(b"authorization", basic("a:s"))])
    with pytest.raises(NoIdentity) as two:
        read([(FIELD, basic("a:s")), (FIELD, basic("a:s"))])
    assert (none.value.code, two.value.code) == ("missing", "two")


def test_a_secret_in_the_place_of_a_name_is_not_kept() -> None:
    secret = "dGhpcyBpcyBhIHNlY3JldCBvZiB0aGlydHktdHdvIGI"
    for user in (secret, token()):
        with pytest.raises(NoIdentity) as caught:
            of(basic(f"{user}:"))
        assert caught.value.claimed == HIDDEN
        assert user not in str(caught.value)
    assert claimed_name("customer-support-researcher-in-production") == "customer-support-researcher-in-production"
