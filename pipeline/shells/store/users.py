"""The two users of the embedded store: `writer` inserts, `reader` asks. Passwords are files, made at the first start."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.shells.store.refusal import AUTHENTICATION_FAILED, REQUIRED_PASSWORD, Refusal
from schemas.config import Config
from schemas.home import Home
from schemas.links import read_secret
from schemas.process import private_dir, write_atomic

PASSWORD_BYTES: Final = 24


class Users:
    """Who may come in. Holds passwords; its repr does not show them."""

    def __init__(self, home: Home, config: Config) -> None:
        """Read or make the password files. Raises OperatorFault for a file that others can read."""
        own = config.clickhouse
        self._known = {
            own.writer: (True, _password(home, "writer", own.writer_password_file)),
            own.reader: (False, _password(home, "reader", own.reader_password_file)),
        }
        self._nobody = secrets.token_bytes(PASSWORD_BYTES)

    def writes(self, user: str) -> bool:
        """Whether a known user may write."""
        return self._known[user][0]

    def check(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """The name of the user that a request proves to be. Raises Refusal: 401 without a user, 403 with a wrong password."""
        given = _credentials(headers, query)
        if given is None:
            raise Refusal(REQUIRED_PASSWORD, "a user and a password are needed")
        user, password = given
        known = self._known.get(user)
        # an unknown user costs the same comparison, and gets the same answer, as a wrong password
        right = hmac.compare_digest(password.encode(), self._nobody if known is None else known[1])
        if known is None or not right:
            raise Refusal(AUTHENTICATION_FAILED, "the user is unknown or the password is wrong")
        return user


def _password(home: Home, user: str, configured: str) -> bytes:
    path = Path(configured) if configured else home.password(user)
    if not path.exists() and not configured:
        private_dir(path.parent)
        write_atomic(path, secrets.token_urlsafe(PASSWORD_BYTES).encode() + b"\n")
    return read_secret(path).encode()


def _credentials(headers: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, str] | None:
    if "X-ClickHouse-User" in headers:
        return headers["X-ClickHouse-User"], headers.get("X-ClickHouse-Key", "")
    scheme, _, text = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Refusal(AUTHENTICATION_FAILED, "the Authorization header is not understood") from None
        return user, password
    if "user" in query:
        return query["user"], query.get("password", "")
    return None
