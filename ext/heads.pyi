from collections.abc import Iterable

class Sorter:
    def __init__(
        self, roles: dict[bytes, int], *, guarded: Iterable[bytes], once: Iterable[int], prefix: bytes, hop: int, trace: int,
        fields: int, name_bytes: int,
    ) -> None:
        """`roles`: lower-case names that mean something; `guarded`: names that no `_` in place of `-` may imitate; `once`:
        roles that may stand in a head once; `prefix`: names that begin so have the role `hop`, which is dropped; `trace`: the
        role that is kept by name; `fields` and `name_bytes`: the most lines of a head, and bytes of a name.

        Raises ValueError for what has no room.
        """

    def sort(self, head: bytes, start: int, /) -> tuple[bytes, list[tuple[bytes, bytes]], dict[int, bytes]] | None:
        """Everything of `head` from `start` on, which must be lines and the empty line behind them; None where it is not.

        Gives the lines of no role, each `name: value` with its CRLF, as one; (name in lower case, value) of those of the trace;
        and the value of every other role but `hop`: as it was written, less one space, where it may stand once, else without
        space around it, several joined by `, `.
        """
