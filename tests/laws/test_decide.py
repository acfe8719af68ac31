"""The matcher gives what every policy looked at one by one gives, and what Cedar gives, for every link and every chain."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.decide import Matcher
from schemas.bundle import Bundle, Rule
from schemas.records import Decision, Verdict
from schemas.vocabulary import implied_parents
from tests.support.policies import (
    AGENTS,
    GROUPS,
    RESOURCE_GROUPS,
    Case,
    Cedar,
    Said,
    applies,
    chain_of,
    closure,
    make_case,
    oracle,
    text_of,
)

BLOCKS = 8
SEEDS_PER_BLOCK = 50
QUESTIONS = 60


def said(decision: Decision) -> Said:
    return Said(decision.verdict is Verdict.ALLOW, decision.reason, decision.because)


def questions_of(case: Case) -> list[tuple[str, str, str]]:
    rng = random.Random(case.seed)
    every = list(itertools.product(case.principals, case.actions, case.resources))
    return [(text_of(p), text_of(a), text_of(r)) for p, a, r in rng.sample(every, QUESTIONS)]


def cedar_of(case: Case, bundle: Bundle, questions: list[tuple[str, str, str]]) -> Cedar:
    uids = [uid for question in questions for uid in question]
    return Cedar(case.text, bundle.parents, uids, [rule.id for rule in bundle.rules])


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_link_gets_the_decision_and_the_policies_that_cedar_gives(block: int) -> None:
    for seed in range(block * SEEDS_PER_BLOCK, (block + 1) * SEEDS_PER_BLOCK):
        case = make_case(seed)
        known = case.compiled()
        matcher = Matcher(known.bundle.encode())
        questions = questions_of(case)
        cedar = cedar_of(case, known.bundle, questions)
        for (link, action, resource), answer in zip(questions, cedar.ask(questions), strict=True):
            expected = chain_of([answer])
            where = f"seed {seed}: {link} {action} {resource}\n{case.text}"
            assert expected == said(matcher.decide((link,), action, resource)), where
            assert expected == oracle(known.bundle, (link,), action, resource), f"the oracle is wrong: {where}"


@pytest.mark.parametrize("length", range(1, 7))
def test_a_chain_gets_the_and_of_what_cedar_gives_for_its_links(length: int) -> None:
    for seed in range(1000, 1040):
        case = make_case(seed)
        known = case.compiled()
        matcher = Matcher(known.bundle.encode())
        rng = random.Random(seed * 10 + length)
        principals = [text_of(uid) for uid in case.principals]
        chains = [
            (tuple(rng.choices(principals, k=length)), text_of(rng.choice(case.actions)), text_of(rng.choice(case.resources)))
            for _ in range(20)
        ]
        singles = [(link, action, resource) for links, action, resource in chains for link in links]
        cedar = cedar_of(case, known.bundle, singles)
        answers = cedar.ask(singles)
        for index, (links, action, resource) in enumerate(chains):
            expected = chain_of(answers[index * length : (index + 1) * length])
            assert expected == said(matcher.decide(links, action, resource)), f"seed {seed}: {links} {action} {resource}"


def test_the_generator_reaches_every_corner() -> None:
    """A law nobody exercises proves nothing."""
    seen: set[object] = set()
    for seed in range(BLOCKS * SEEDS_PER_BLOCK):
        case = make_case(seed)
        bundle = case.compiled().bundle
        named = {text_of(uid) for uid in case.parents}
        for link, action, resource in questions_of(case)[:20]:
            hits = [rule for rule in bundle.rules if applies(bundle, rule, link, action, resource)]
            seen.add(("mix", any(r.forbid for r in hits), any(not r.forbid for r in hits)))
            for rule in hits:
                for dimension, uid in (("principal", link), ("action", action), ("resource", resource)):
                    constraint = getattr(rule, dimension)
                    seen.add((dimension, constraint[0]))
                    if constraint[0] in ("in", "is in", "in any"):
                        for group in set(constraint[1:]) & closure(bundle.parents, uid):
                            seen.add((dimension, "how far", how_far(bundle, uid, group)))
                            seen.add((dimension, "known", uid in named))
    wanted: set[object] = {("mix", forbid, permit) for forbid in (True, False) for permit in (True, False)}
    for dimension in ("principal", "resource"):
        wanted |= {(dimension, form) for form in ("any", "==", "in", "is", "is in")}
    wanted |= {("action", form) for form in ("any", "==", "in", "in any")}
    wanted |= {("principal", "how far", hops) for hops in (0, 1, 2, 3)}
    wanted |= {("action", "how far", hops) for hops in (0, 1, 2)} | {("resource", "how far", hops) for hops in (0, 1, 2)}
    wanted |= {(dimension, "known", known) for dimension in ("action", "resource") for known in (True, False)}
    assert wanted <= seen, wanted - seen


def how_far(bundle: Bundle, uid: str, group: str) -> int:
    """Steps up from an entity to one that it is in."""
    reached, steps = {uid}, 0
    while group not in reached:
        reached |= {above for one in reached for above in (*bundle.parents.get(one, ()), *implied_parents(one))}
        steps += 1
    return steps


seeds = st.integers(min_value=5000, max_value=9999)


@settings(max_examples=60)
@given(seed=seeds)
def test_one_more_forbid_never_allows_more(seed: int) -> None:
    case = make_case(seed)
    bundle = case.compiled().bundle
    rng = random.Random(seed)
    group, server = text_of(rng.choice(GROUPS)), text_of(RESOURCE_GROUPS[0])
    more = Rule(id="more", forbid=True, principal=("in", group), resource=("in", server))
    before, after = Matcher(bundle.encode()), Matcher(Bundle(rules=(*bundle.rules, more), parents=bundle.parents).encode())
    for link, action, resource in questions_of(case):
        assert after.decide((link,), action, resource).verdict <= before.decide((link,), action, resource).verdict


@settings(max_examples=60)
@given(seed=seeds)
def test_one_more_link_never_allows_more(seed: int) -> None:
    case = make_case(seed)
    matcher = Matcher(case.compiled().bundle.encode())
    more = text_of(random.Random(seed).choice(AGENTS))
    for link, action, resource in questions_of(case):
        alone = matcher.decide((link,), action, resource).verdict
        assert matcher.decide((link, more), action, resource).verdict <= alone
        assert matcher.decide((more, link), action, resource).verdict <= alone


@settings(max_examples=60)
@given(seed=seeds)
def test_every_allow_names_a_permit_and_every_forbid_a_forbid(seed: int) -> None:
    case = make_case(seed)
    bundle = case.compiled().bundle
    matcher = Matcher(bundle.encode())
    effect = {rule.id: rule.forbid for rule in bundle.rules}
    for link, action, resource in questions_of(case):
        decision = matcher.decide((link,), action, resource)
        assert {effect[name] for name in decision.because} == {"permit": {False}, "forbid": {True}}.get(decision.reason, set())
        assert decision.policy_digest == bundle.digest == matcher.digest


@settings(max_examples=30)
@given(seed=seeds)
def test_a_cached_decision_is_the_one_that_was_worked_out(seed: int) -> None:
    case = make_case(seed)
    encoded = case.compiled().bundle.encode()
    matcher = Matcher(encoded)
    questions = questions_of(case)
    first = [matcher.decide((link,), action, resource) for link, action, resource in questions]
    random.Random(seed).shuffle(questions)
    fresh = {q: said(Matcher(encoded).decide((q[0],), q[1], q[2])) for q in questions[:5]}
    for q, expected in fresh.items():
        assert expected == said(matcher.decide((str(bytes(q[0], "utf-8"), "utf-8"),), q[1], q[2]))
    assert matcher.misses == len(set(questions))
    assert len({id(decision) for decision in first}) <= len(questions)
