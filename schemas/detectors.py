"""The detectors by their names, their tactics, and what a rule may revoke of what each of them says."""

from collections.abc import Mapping
from typing import Final

FIRST_SEEN: Final = "first-seen"
SECOND_HOLDER: Final = "second-holder"
LEAK: Final = "leak"
BEACON: Final = "beacon"
DENY_BURST: Final = "deny-burst"
VOLUME: Final = "volume"
SEQUENCE: Final = "sequence"
CHAIN: Final = "chain"
RISK: Final = "risk"

LIMIT: Final = "limit"
"""No detector: a rule of `[[respond]]` that has revoked as often as it may says so in a finding of this name."""

TACTICS: Final[Mapping[str, str]] = {
    FIRST_SEEN: "TA0011",
    SECOND_HOLDER: "TA0006",
    LEAK: "TA0010",
    BEACON: "TA0011",
    DENY_BURST: "TA0007",
    VOLUME: "TA0010",
    SEQUENCE: "TA0002",
    CHAIN: "TA0004",
}
"""Each detector's tactic (MITRE ATT&CK): command and control, credential access, exfiltration, discovery, execution, privilege
escalation. Two detectors of one tactic may see the same thing twice; two of different tactics are worth more."""

DETECTORS: Final = (*TACTICS, RISK)

ANY: Final = "any"
"""What a rule names that is about every detector which may revoke."""

AGENT: Final = "agent"
ROOT: Final = "root"
CREDENTIAL: Final = "credential"
SESSION: Final = "session"
DESTINATION: Final = "destination"

REVOCABLE: Final[Mapping[str, tuple[str, ...]]] = {
    FIRST_SEEN: (AGENT, ROOT, DESTINATION),
    SECOND_HOLDER: (AGENT, ROOT, CREDENTIAL),
    LEAK: (AGENT, ROOT, DESTINATION),
    BEACON: (),
    DENY_BURST: (AGENT, ROOT),
    VOLUME: (AGENT, ROOT),
    SEQUENCE: (AGENT, ROOT, SESSION),
    CHAIN: (AGENT, ROOT, SESSION),
    RISK: (AGENT, ROOT),
}
"""What of a detector's findings a rule may revoke: what they are sure to name. The root is that of the calls behind them. That
something is regular proves nothing (two of three such findings are updaters and mail), so that a beacon alone never revokes."""
