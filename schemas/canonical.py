"""JSON in one spelling: keys sorted, no spaces, UTF-8 as it is. What is signed or named by its digest is written like this."""

import json
from collections.abc import Callable
from typing import Any, Final

canonical_text: Final[Callable[[Any], str]] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
).encode
"""Raises ValueError for a number that JSON does not have."""


def canonical(value: Any) -> bytes:
    """The bytes of `canonical_text`. Raises UnicodeEncodeError, a ValueError, for a lone surrogate too."""
    return canonical_text(value).encode()
