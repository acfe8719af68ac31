"""The decision kernel: see `decide.pyx`."""

from schemas.records import Decision

class Matcher:
    """Decides calls against one compiled policy set. Pure: the same question gets the same answer."""

    def __init__(self, bundle: bytes) -> None:
        """Index a bundle's canonical bytes. Raises OperatorFault when they are not that."""
    @property
    def digest(self) -> str:
        """SHA-256 of the bundle, 64 hex digits."""
    @property
    def policies(self) -> int:
        """Policies in the bundle."""
    @property
    def misses(self) -> int:
        """Decisions that were worked out, not found in the cache."""
    @property
    def cached(self) -> int:
        """Decisions in the cache now, never more than 16,384."""
    def decide(self, links: tuple[str, ...], action: str, resource: str, /) -> Decision:
        """The AND over `links` (principal uids) of Cedar's decision for `action` on `resource` (uids).

        A forbid of any link denies (`forbid`, with the ids that forbid); else every link needs a permit (`no-permit` where one
        has none, without ids); else it is allowed (`permit`, with the ids that permit any link). No links, and a text that is
        no uid in its one spelling: denied (`identity`). Raises TypeError for anything but a tuple of str and two str,
        RuntimeError when another thread is inside: one matcher serves one thread at a time.
        """
