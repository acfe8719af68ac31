"""Are second holders of a key found at their first event, and whom else does it blame? `python -m benchmarks.detect_holder`.

    cloudtrail   133 access keys of an account, nearly an hour: nobody is known to have shared one, so every finding is false.
                 Two keys are used from two addresses: the S3 console calls on behalf of who uses it, a second after them
    thieves      synthetic, and says so: of each key a thief from another network, once, at a time between a minute after the
                 key's first use and an hour after its last, through another enforcer, and through the same (of keys whose first
                 use says where it came from, the others cannot be told apart). It must be found at that one event

Beside it stands the field's rule, two addresses.
"""

import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from benchmarks.detectdata import Told, cloudtrail, data, hear
from benchmarks.figures import Counts, Figure, share, show
from pipeline.core.detect.holder import SecondHolders

FALSE_KEYS_MAX: Final = 1.0
LIMITS: Final = {"keys blamed": FALSE_KEYS_MAX, "found at their first event": 1.0}
MINUTE_US: Final = 60_000_000
HOUR_US: Final = 3_600_000_000
THIEF: Final = "203.0.113.7"
SEED: Final = 6


def main(argv: list[str]) -> int:
    """Print the table; returns 1 when a limit is missed, 2 without data."""
    if data() is None:
        print("detect_holder: the shared data folder is not here", file=sys.stderr)
        return 2
    return show(measure(argv))


def measure(options: list[str]) -> list[Figure]:
    """The figures of the account and of the thieves. There are no options."""
    source = data()
    if source is None:
        return []
    calls = cloudtrail(source)
    keys: dict[str, list[Told]] = defaultdict(list)
    for call in sorted(calls, key=lambda one: one.time_us):
        keys[call.credential].append(call)
    blamed = {finding.credential for finding in hear(calls, [SecondHolders()]).standing()}
    two = {key for key, uses in keys.items() if len({use.client for use in uses if use.client}) > 1}
    counts = {key: (float(key in blamed), 1.0) for key in keys}
    figures = [
        Figure(detector="holder", data="cloudtrail", what="keys blamed", value=float(len(blamed)), most=FALSE_KEYS_MAX,
               note=f"of {len(keys)} keys"),
        share("holder", "cloudtrail", "share of keys blamed", counts),
        Figure(detector="holder", data="cloudtrail", what="keys blamed, by two addresses alone", value=float(len(two))),
    ]  # fmt: skip
    dice = random.Random(SEED)
    times = {key: dice.randint(uses[0].time_us + MINUTE_US, uses[-1].time_us + HOUR_US) for key, uses in sorted(keys.items())}
    placed = {key: uses for key, uses in keys.items() if uses[0].client}
    for what, some, enforcer in (("another enforcer", keys, "enforce-2"), ("the same enforcer", placed, "enforce-1")):
        figures.append(share("holder", "thieves (synthetic)", f"found at their first event, by {what}",
                             found(some, times, enforcer), least=1.0, note=f"{len(some)} thieves"))  # fmt: skip
    return figures


def found(keys: dict[str, list[Told]], times: dict[str, int], enforcer: str) -> dict[str, Counts]:
    """Whether each thief is found, at the call that is its only one."""
    stolen: list[Told] = [use for uses in keys.values() for use in uses]
    stolen += [theft(uses, times[key], enforcer) for key, uses in keys.items()]
    standing = hear(stolen, [SecondHolders()]).standing()
    caught = {one.credential for one in standing if one.time_us == times[one.credential] and named(one.evidence)}
    return {key: (float(key in caught), 1.0) for key in keys}


def named(evidence: object) -> bool:
    """Whether the thief is the other holder."""
    return isinstance(evidence, dict) and evidence["other"]["network"].startswith("203.0.113.")


def theft(uses: Sequence[Told], time_us: int, enforcer: str) -> Told:
    """A use of somebody's key by the thief, for the agent that the key stands for."""
    return uses[0]._replace(time_us=time_us, client=THIEF, enforcer=enforcer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
