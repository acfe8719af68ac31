"""Four door processes on one board that changes while they decide: what they acknowledged, they obey from then on."""

import json
import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.bundle import Bundle, Rule
from schemas.calls import RecordedCall
from schemas.records import Verdict
from schemas.selectors import caller_texts, target_texts
from tests.support.boarded import Boarded, Changed, Done

PERMIT = Rule(id="all", forbid=False)
ALL = Bundle(rules=(PERMIT,))
NO_BANK = Bundle(rules=(PERMIT, Rule(id="no-bank", forbid=True, resource=("in", 'McpServer::"bank"'))))
SERVERS = ("bank", "mail", "files", "web", "chat")
AGENTS, SESSIONS = 40, 400
SELECTORS = (
    *(f"agent:a{n}" for n in range(AGENTS)),
    *(f"agent*:a{n}" for n in range(AGENTS)),
    *(f"session:s{n}" for n in range(0, SESSIONS, 7)),
    *(f"destination:{server}" for server in SERVERS),
    *(f"destination:{server}/t3" for server in SERVERS),
    *(f"principal:User::\"u{n}\"" for n in range(10)),
)  # fmt: skip


def write_calls(path: Path, count: int) -> Path:
    with path.open("w") as out:
        for n in range(count):
            agent = n * 31 % AGENTS
            line = {
                "time": n, "agent": f"a{agent}", "chain": [f'User::"u{n % 10}"', f"a{(agent + 1) % AGENTS}", f"a{agent}"],
                "session": f"s{n % SESSIONS}", "action": "mcp:tools/call", "resource": f'Tool::"{SERVERS[n % 5]}/t{n % 7}"',
            }  # fmt: skip
            out.write(json.dumps(line) + "\n")
    return path


def texts_of(call: RecordedCall) -> frozenset[str]:
    return frozenset(caller_texts(call.chain, session=call.session)) | frozenset(target_texts(call.resource))


class Judge:
    """What each record should be, from the states that the board had and the times of the acknowledgements."""

    def __init__(self, host: Boarded, records: list[Done]) -> None:
        self.host = host
        self.records = records
        self.calls = host.calls()
        self.texts = {ref: texts_of(call) for ref, call in self.calls.items()}
        self.forbids = {host.put(ALL): False, host.put(NO_BANK): True}

    def state(self, epoch: int) -> Changed:
        return self.host.states[epoch - 1]

    def each_line_once(self) -> None:
        assert sorted(done.ref for done in self.records) == sorted(self.calls)
        assert all(done.ended == (done.verdict is Verdict.ALLOW or done.withdrawn) for done in self.records)

    def each_record_is_what_its_epoch_says(self) -> None:
        """The set of revocations that it names is the one that it obeys, and its policies are what decide it otherwise."""
        for done in self.records:
            state, texts = self.state(done.epoch), self.texts[done.ref]
            banned = self.forbids[done.policy_digest] and "bank/" in self.calls[done.ref].resource
            if state.paused:
                expected = "paused"
            elif state.revoked & texts:
                expected = "revoked"
            else:
                expected = "forbid" if banned else "permit"
            assert done.reason == expected, done
            assert done.verdict is (Verdict.ALLOW if expected == "permit" else Verdict.DENY), done

    def nothing_goes_back(self) -> None:
        """A door never decides by a state from before the one that it decided by."""
        last: dict[str, int] = {}
        for done in self.records:
            if not done.withdrawn:  # its epoch is that of its end
                assert done.epoch >= last.get(done.door, 0), done
                last[done.door] = done.epoch

    def what_was_acknowledged_is_obeyed(self) -> None:
        """By the clock, whatever epoch a record names: allowed after the word, and revoked from then until now, is a loss."""
        for door, said in self.host.said.items():
            assert said == sorted(said, key=lambda word: (word.epoch, word.applied_ns))
            times = [word.applied_ns for word in said]
            for done in (one for one in self.records if one.door == door and one.verdict is Verdict.ALLOW):
                known = bisect_right(times, done.recorded_ns - 1) - 1
                if known < 0:
                    continue
                word = said[known]
                assert done.epoch >= word.epoch, (done, word)
                since = self.host.states[word.epoch - 1 : self._latest(done.recorded_ns)]
                assert not frozenset.intersection(*(state.revoked for state in since)) & self.texts[done.ref], (done, word)
                allowed_by = {state.policy for state in since} | {word.policy}
                assert done.policy_digest in allowed_by, (done, word)

    def _latest(self, now_ns: int) -> int:
        """How many states there were a moment later: the board is written before its time is noted."""
        return bisect_right(self.host.states, now_ns + 50_000_000, key=lambda state: state.written_ns)

    def nothing_is_sent_that_was_revoked_before(self) -> None:
        """Without any acknowledgement: once the board has it, no call is let out that is recorded later."""
        written = [state.written_ns for state in self.host.states]
        for done in (one for one in self.records if one.verdict is Verdict.ALLOW):
            known = max(1, bisect_right(written, done.recorded_ns))
            since = self.host.states[known - 1 : self._latest(done.recorded_ns)]
            assert not frozenset.intersection(*(state.revoked for state in since)) & self.texts[done.ref], done
            assert not all(state.paused for state in since), done


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Boarded]:
    calls = write_calls(tmp_path / "calls.jsonl", request.param)
    # a pace that leaves whoever changes the board its turns, on two busy cores too: a race of one side is none
    with Boarded(tmp_path / "home", calls, doors=4, bundle=ALL, rate=8_000) as made:
        yield made


@pytest.mark.soak
@pytest.mark.parametrize("host", [100_000], indirect=True)
def test_a_change_that_races_with_a_hundred_thousand_decisions_is_never_lost(host: Boarded) -> None:
    rng = random.Random(4)
    digests = [host.put(ALL), host.put(NO_BANK)]
    lasting = set(rng.sample(SELECTORS, 12))
    live: set[str] = set()
    host.start()
    due = 0.0
    while host.look():
        now = time.monotonic()
        if now < due:
            continue
        due = now + rng.expovariate(400)
        host.refresh()
        fate = rng.random()
        passing = live - lasting
        if fate < 0.04:
            host.decide_by(digests[len(host.states) % 2])
        elif fate < 0.05:
            host.pause(True)
            host.pause(False)
        elif passing and (fate < 0.5 or len(live) > 8):
            host.lift(rng.choice(sorted(passing)))
        else:
            text = rng.choice(SELECTORS)
            live.add(text)
            host.revoke(text)
        live = set(host.states[-1].revoked)
    judge = Judge(host, host.recorded())
    judge.each_line_once()
    judge.each_record_is_what_its_epoch_says()
    judge.nothing_goes_back()
    judge.what_was_acknowledged_is_obeyed()
    judge.nothing_is_sent_that_was_revoked_before()
    # the race took place: every door met many states and acknowledged them, and each kind of answer came up
    reasons = Counter(done.reason for done in judge.records)
    assert min(reasons[reason] for reason in ("permit", "revoked", "forbid")) > 500, reasons
    assert len(host.states) > 300
    for door, said in host.said.items():
        assert len(said) > 100
        assert len({done.epoch for done in judge.records if done.door == door}) > 100
        assert len({done.policy_digest for done in judge.records if done.door == door}) == 2
