"""What the doors of a home are called: `door-1`, `door-2`, ..., whoever starts them, a host or a replay."""

from typing import Final

from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import Lock

NAMES_MAX: Final = 1024
"""Doors of one home at a time."""


def claim_name(home: Home, *, leaving: bool = False) -> tuple[str, Lock]:
    """Take the first name that nobody has; it is ours until the lock is let go, however often its door dies meanwhile.

    A door whose starter was killed holds its own lock for a moment longer. Its name is passed over; with `leaving` it is
    taken, and the new door waits for the old one: whoever starts again keeps the names that clients know.
    Raises OperatorFault when all are held.
    """
    for n in range(1, NAMES_MAX + 1):
        name = f"door-{n}"
        claim = Lock(home.run / f"{name}.claim")
        if claim.take():
            if leaving or is_free(home, name):
                return name, claim
            claim.release()
    raise OperatorFault(f"all {NAMES_MAX} names `door-N` of `{home.root}` are held")


def is_free(home: Home, name: str) -> bool:
    """Whether no door process has this name now."""
    own = Lock(home.run / f"{name}.lock")
    free = own.take()
    own.release()
    return free
