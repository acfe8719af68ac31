import builtins
from collections.abc import Iterable

class BoardWriter:
    """Makes a board at `path` (and its tables at `path.tableN`) in place of the one that was there; there is one writer.

    It is stale, and says nothing, until the first `replace` or `change` and `fresh`. `boot` is the host's. Raises PeerFault
    where the files cannot be made.
    """

    def __init__(self, path: str, boot: int, slots: int = 1024) -> None:
        """`slots` is the least that a table has; it holds half as many entries before a larger one takes its place."""
    @property
    def boot(self) -> int: ...
    @property
    def generation(self) -> int:
        """Changes so far."""
    @property
    def entries(self) -> int:
        """Texts that are revoked."""
    @property
    def bytes(self) -> int:
        """Of the two files."""
    def change(
        self, revoke: Iterable[tuple[str, int]], lift: Iterable[str], *, epoch: int, paused: bool, policy: builtins.bytes
    ) -> None:
        """One step for all readers. `revoke` is selector texts, each with its `not before` (seconds since 1970, 0: everything).

        What is lifted and revoked at once is revoked. `policy` is a digest of 32 bytes, or empty. Raises PeerFault where there
        is no room for a larger table, AgentFault for a text without UTF-8, ValueError for another length of `policy`. Whatever
        it raises, the board is stale from then on, since it lacks a change: `fresh` leaves it so until `replace` succeeds.
        """
    def replace(self, revoked: Iterable[tuple[str, int]], *, epoch: int, paused: bool, policy: builtins.bytes) -> None:
        """The same with the whole set anew."""
    def fresh(self, until_ns: int) -> None:
        """The board may be believed until then (CLOCK_MONOTONIC, nanoseconds, at most 60 s ahead); 0: stale now.

        Time in which the machine sleeps does not pass on that clock. Raises ValueError for a time further ahead.
        """
    def close(self) -> None:
        """Leave the board stale. The files stay until another writer comes."""
