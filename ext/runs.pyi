class Run:
    """Records `first` to `last` of one door, one after another in one segment."""

    @property
    def boot(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def last_ref(self) -> int:
        """The highest `ref` of these records."""

    @property
    def opened(self) -> list[tuple[int, bytes]]:
        """(seq, trace id) of each allowed decision whose call does not end in this run."""

    @property
    def closed(self) -> list[int]:
        """The decision's seq of each call of an earlier run that ends in this one."""

    @property
    def view(self) -> memoryview:
        """The records' bytes, read-only and not copied; the view keeps the Run."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class SpoolReader:
    """Reads the records of one door that follow `after_seq`, in any process, while the door writes.

    The folder may be empty still. Raises OperatorFault for segments of another boot, OSError where the folder cannot be read.
    """

    def __init__(self, folder: str, boot: int, after_seq: int = 0) -> None: ...
    @property
    def boot(self) -> int: ...
    @property
    def last_seq(self) -> int:
        """The seq of the last record that was returned (at first `after_seq`)."""

    @property
    def segment(self) -> int:
        """The number of the segment being read, 0 before the first: those below it are read."""

    @property
    def torn(self) -> str:
        """The first damage met, as text; empty when everything read was sound."""

    def read(self, records_max: int, bytes_max: int) -> list[Run]:
        """The next records within both limits, but at least one where there is one, however long; [] when there is none yet.

        At damage it stays where it is and looks again each time: the spool's next writer cuts the damage off.
        """

    @property
    def idle(self) -> bool:
        """Whether there is a segment, nothing is behind what was read of it, and none follows it: `read` would find nothing."""

    def close(self) -> None:
        """Let go of the folder. Runs that were returned stay valid."""
