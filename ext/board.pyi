from ext.post import BoardWriter as BoardWriter

__all__ = ["BoardReader", "BoardWriter", "SeenReader", "SeenWriter", "Selectors"]

class Selectors:
    """Selector texts that are true of a call; remembers at which state of the board none of them was revoked.

    Hashed once for each board. May be kept and used for many calls, in one thread at a time. Raises AgentFault for a text that
    has no UTF-8.
    """

    def __init__(self, texts: tuple[str, ...], issued_s: int = 0) -> None:
        """`issued_s` is when the call's credential was issued, seconds since 1970; 0 is before every `not before`."""
    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def issued_s(self) -> int: ...

class BoardReader:
    """Reads the board at `path`, in one thread at a time.

    Where there is none yet, or its writer has left it, it is stale, and whether `path` is another file is looked at with a
    check, at most every 50 ms.
    """

    def __init__(self, path: str) -> None: ...
    @property
    def generation(self) -> int:
        """Changes of the board up to the last check."""
    @property
    def epoch(self) -> int:
        """The control epoch as of the last check."""
    @property
    def turn(self) -> int:
        """States of whatever board that were read up to the last check, and more: the same number means the same state."""
    @property
    def policy(self) -> bytes:
        """Digest of the policies that are wanted as of the last check, 32 bytes; empty where there are none."""
    def check(self, caller: Selectors, target: Selectors, /) -> int:
        """What the board says of a call now: a `schemas.records.Standing`.

        Stale goes before paused, paused before revoked. A text is revoked when the board has it and its `not before` is 0 or
        later than `issued_s`. Waits for a change that is being made, 100 ms at most, and is stale then: so it is for ever
        when the writer died in it. Nothing is allocated where nothing has changed; the clock is the coarse one, so a board is
        believed for up to one tick of the kernel (1 to 10 ms) longer than its writer said.
        """
    def unchanged(self) -> bool:
        """Whether the board still is as the last check found it, and fresh."""

class SeenWriter:
    """Says what one door has applied, in the file `seen` of its folder. Raises PeerFault where that cannot be made."""

    def __init__(self, folder: str) -> None: ...
    def write(self, epoch: int, policy: bytes, applied_ns: int) -> None:
        """Every decision from now on obeys `epoch` and is by the policies with this digest (32 bytes or none)."""

class SeenReader:
    """Reads what the door with this folder has said."""

    def __init__(self, folder: str) -> None: ...
    def read(self) -> tuple[int, bytes, int] | None:
        """Epoch, policy digest and since when (nanoseconds since 1970); None before the first word."""
