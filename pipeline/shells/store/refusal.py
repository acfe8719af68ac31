"""What the front answers instead of the engine, with ClickHouse's codes."""

from typing import Final

SYNTAX_ERROR: Final = (62, "SYNTAX_ERROR", 400)
TOO_LARGE: Final = (307, "TOO_MANY_BYTES", 413)
NOT_IMPLEMENTED: Final = (48, "NOT_IMPLEMENTED", 400)
READONLY: Final = (164, "READONLY", 403)
REQUIRED_PASSWORD: Final = (194, "REQUIRED_PASSWORD", 401)
TOO_MANY_QUERIES: Final = (202, "TOO_MANY_SIMULTANEOUS_QUERIES", 503)
NO_ROOM: Final = (243, "NOT_ENOUGH_SPACE", 507)
CANNOT_DECOMPRESS: Final = (354, "ZLIB_INFLATE_FAILED", 400)
SESSION_NOT_FOUND: Final = (372, "SESSION_NOT_FOUND", 404)
OUT_OF_BOUNDS: Final = (452, "SETTING_CONSTRAINT_VIOLATION", 400)
ACCESS_DENIED: Final = (497, "ACCESS_DENIED", 403)
AUTHENTICATION_FAILED: Final = (516, "AUTHENTICATION_FAILED", 403)
UNEXPECTED_METHOD: Final = (501, "NOT_IMPLEMENTED", 405)


class Refusal(Exception):
    """One of the kinds above and one line that says why: lower case, names and limits, never the text of a query."""

    def __init__(self, kind: tuple[int, str, int], message: str) -> None:
        super().__init__(message)
        self.code, self.name, self.status = kind
