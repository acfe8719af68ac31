"""The second opinion on a head: llhttp, the parser of Node.js, must read it as we do.

It says nothing about what we refuse, and much of what it accepts we do not. Where it refuses a head that we take, or reads
another method, target or status, or another answer to `does a body follow`, somebody else may do so too.
"""

from typing import Final

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from enforcers.core.http.fields import BadAnswer, BadRequest
from schemas.vocabulary import shown


class _Seen:
    """What llhttp made of a request's head: its target, and whether the request ends with it."""

    __slots__ = ("complete", "target")

    def __init__(self) -> None:
        self.target = b""
        self.complete = False

    def on_url(self, target: bytes) -> None:
        self.target = target

    def on_message_complete(self) -> None:
        self.complete = True


_NOBODY: Final = object()


def confirm_request(head: bytes, method: bytes, target: bytes, bodiless: bool) -> None:
    """Raise BadRequest where llhttp does not read this of `head`; 501 for a method that it does not know."""
    seen = _Seen()
    parser = HttpRequestParser(seen)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        pass
    except HttpParserInvalidURLError:
        raise BadRequest("target", "the target is no absolute http target") from None
    except HttpParserError as fault:
        if isinstance(fault, HttpParserInvalidMethodError) or method == b"PRI":  # which begins HTTP/2 and nothing else
            raise BadRequest("method", f"method `{shown(method.decode())}` is not known", 501) from None
        raise BadRequest("disagreement", "another parser refuses this head") from None
    if seen.target != target or seen.complete is not bodiless or parser.get_method() != method:
        raise BadRequest("disagreement", "another parser reads this head in another way")


def confirm_answer(head: bytes, status: int) -> None:
    """Raise BadAnswer where llhttp refuses `head` or reads another status."""
    parser = HttpResponseParser(_NOBODY)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        pass
    except HttpParserError:
        raise BadAnswer("disagreement", "another parser refuses the head of the answer") from None
    if parser.get_status_code() != status:
        raise BadAnswer("disagreement", "another parser reads the head of the answer in another way")
