"""Errors, sorted by who must act.

Messages are one line: lower case, no full stop, user text in backticks, the value beside its limit.
The command line prints them and exits with 2; the store answers 4xx; a worker keeps the bytes as a dead letter.
"""


class WardlineError(Exception):
    """Anything that Wardline refuses, with the one who can put it right in `blame`."""

    blame = "wardline"
    retriable = False
    unsettled = False
    """Whether it is about a change that did not happen, or may have."""


class AgentFault(WardlineError):
    """This call is refused; the next one may pass."""

    blame = "agent"


class OperatorFault(WardlineError):
    """Stop before serving with this policy, key, file or setting."""

    blame = "operator"


class PeerFault(WardlineError):
    """The same bytes may work later: a broker, a store or a disk is away."""

    blame = "peer"
    retriable = True


class SpoolFull(PeerFault):
    """The spool has no room for this record: the call waits or is refused, and nothing goes out."""


class FrameFault(WardlineError):
    """These bytes are no frame that we can accept; `reason` is the dead letter's short name for why."""

    blame = "peer"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
