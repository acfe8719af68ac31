"""Sequence: an agent calls tools in an order in which it has never called them.

Of each task (a session, or where a call has none its trace) it is known when each tool was called first and last. Tool b comes
after tool a in a task when b was called at some time after a was (b may be a again): with any number of other calls between
them, so that a harmless call in between hides nothing. Each tool, and each such pair, belongs to the task that began first of
those that have it: there it was new. Of a task that began at least 24 hours after the agent's first call,

    new tools    tools that belong to it                                            15 points each, 45 at most
    new order    pairs that belong to it of two tools that do not                    5 points each, 25 at most

There is a finding at 15 points: a new tool, or three new pairs of known ones. Beginnings only become earlier and pairs only
more as calls come in, so what belongs to whom is a function of the set of calls. TA0002.

Only tools (`Tool::"server/tool"`) are looked at: the hosts of a web page come in no order that means something.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.core.detect.columns import Ints, codes, numbers
from pipeline.core.detect.interface import Room, make_room
from pipeline.core.detect.words import JUDGED_DAYS, Rows, differs, examples
from schemas.findings import SEQUENCE, Finding, Term, some_calls
from schemas.limits import SEQUENCE_PAIRS_MAX, SEQUENCE_TASKS_MAX, SEQUENCE_TOOLS_MAX
from schemas.records import call_id

DAY_US: Final = 86_400_000_000
LEARNING_US: Final = DAY_US
"""What an agent does in its first day is what it does."""

POINTS_MIN: Final = 15.0
TOOL_POINTS: Final = 15.0
TOOL_POINTS_MAX: Final = 45.0
PAIR_POINTS: Final = 5.0
PAIR_POINTS_MAX: Final = 25.0
EXAMPLES_MAX: Final = 40
"""New tools, and new pairs, that a finding names: more than its score needs, but for very long names."""

_TOOL: Final = 'Tool::"'
_TRACE: Final = re.compile("[0-9a-f]{32}")
Owner: TypeAlias = tuple[int, str]
"""Who had something first: when the task began, and its name. The least one has it."""

Thing: TypeAlias = str | tuple[str, str]
"""A tool, or one tool after another."""

Times: TypeAlias = tuple[int, int, int, int, int]
"""Of a tool in a task: its first and its last call in us, boot and seq of the first, calls."""

Shape: TypeAlias = tuple[str | bool, ...]
"""The tools of a task, and of each two whether the second came at some time after the first: tasks of one shape have the same
tools and pairs."""

SHAPES_MAX: Final = 64
"""Shapes of an agent that are known to be nobody's news."""

SHAPED_TOOLS_MAX: Final = 8


class _Task:
    """One task of an agent."""

    __slots__ = ("began_us", "owns", "said", "tools")

    def __init__(self) -> None:
        self.tools: dict[str, Times] = {}
        self.owns: set[Thing] | frozenset[Thing] = _NOTHING
        self.said: Finding | None = None
        self.began_us = 1 << 62
        """Its first call; kept, since it is asked for again and again."""


_NOTHING: Final[frozenset[Thing]] = frozenset()


@dataclass(slots=True)
class _Agent:
    first_us: int
    last_us: int
    rows: Rows = field(default_factory=Rows)
    tasks: dict[str, _Task] = field(default_factory=dict)
    owners: dict[Thing, Owner] = field(default_factory=dict)
    owned: dict[Shape, Owner] = field(default_factory=dict)
    """Of a shape all of whose tools and pairs have an owner, the last of these. Owners only become earlier: a task of that
    shape behind it is nobody's news, for ever."""


class Sequences:
    """The detector `sequence`, by agent."""

    name: Final = SEQUENCE
    subject: Final = "agent"

    def __init__(
        self, tasks: int = SEQUENCE_TASKS_MAX, tools: int = SEQUENCE_TOOLS_MAX, pairs: int = SEQUENCE_PAIRS_MAX
    ) -> None:
        self._tasks_max = tasks
        self._tools_max = tools
        self._things_max = pairs
        self._agents: OrderedDict[str, _Agent] = OrderedDict()
        self._tasks: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._things = 0
        self._evicted = 0

    @property
    def entries(self) -> int:
        """Tasks that it knows."""
        return len(self._tasks)

    @property
    def evicted(self) -> int:
        """Tasks, tools of a task, and agents' tools and pairs, that had to make room or found none."""
        return self._evicted

    @property
    def room(self) -> tuple[Room, ...]:
        """What is kept, and the most that may be."""
        return (Room(len(self._tasks), self._tasks_max), Room(self._things, self._things_max))

    def forget_oldest(self, which: int) -> bool:
        """Let go of the task, or of the agent with its tools and pairs, that was heard of longest ago."""
        if which == 1:
            return self._forget_agent("")
        if self._tasks:
            self._drop_oldest()
        return bool(self._tasks)

    def clear(self) -> None:
        """Forget every agent."""
        self._agents.clear()
        self._tasks.clear()
        self._things = 0

    def take(self, rows: pa.Table) -> list[Finding]:
        """Note which tool each task has called when, and judge the tasks whose own or whose order has changed."""
        calls = numbers(rows, "calls")
        agent, names = codes(rows, "agent")
        task, tasks = codes(rows, "task")
        resource, tools = codes(rows, "resource")
        is_tool = np.array([tool.startswith(_TOOL) for tool in tools], bool)
        wanted = np.flatnonzero((calls > 0) & is_tool[resource]) if len(tools) else np.zeros(0, np.int64)
        if not len(wanted):
            return []
        touched: dict[str, set[str]] = {}
        earlier: set[str] = set()
        for one_agent in _by_agent(rows, wanted, agent[wanted], task[wanted], resource[wanted]):
            if name := names[one_agent.agent]:
                self._agent(name, one_agent, tasks, tools, touched.setdefault(name, set()), earlier)
        said = []
        for name in sorted(touched.keys() | earlier):
            if name not in self._agents:  # it has made room for another one of these
                continue
            state = self._agents[name]
            changed = self._own(name, state, touched.get(name, set()))
            said += self._judge(name, state, state.tasks if name in earlier else changed)
        make_room([[self]])
        return said

    def _agent(
        self, name: str, group: "_Group", tasks: Sequence[str], tools: Sequence[str], touched: set[str], earlier: set[str]
    ) -> None:
        """Note what is new of one agent's tasks. It is the loop that this detector spends its time in."""
        state = self._agents.get(name)
        if state is None:
            state = self._agents[name] = _Agent(group.first_us, group.first_us)
        elif group.first_us < state.first_us:
            state.first_us = group.first_us
            earlier.add(name)
        state.last_us = max(state.last_us, group.last_us)
        self._agents.move_to_end(name)
        for day, count in group.days:
            state.rows.add(day, count)
        known, queue, most = state.tasks, self._tasks, self._tools_max
        at, task, one = -1, "", _Task()
        for row in group.tools:
            what, tool, seen = row[0], tools[row[1]], row[2:]
            if what != at:  # what belongs to one task follows each other
                at, task = what, tasks[what]
                if not task:
                    continue
                found = known.get(task)
                if found is None:
                    found = known[task] = _Task()
                    queue[name, task] = None
                else:
                    queue.move_to_end((name, task))
                one = found
            elif not task:
                continue
            times = one.tools.get(tool)
            if times is not None:
                one.tools[tool], changed = _both(times, seen)
            elif len(one.tools) < most:
                one.tools[tool] = seen
                changed = True
            else:
                self._evicted += 1
                continue
            one.began_us = min(one.began_us, seen[0])
            if changed or one.said is not None:
                touched.add(task)

    def _own(self, name: str, state: _Agent, touched: Iterable[str]) -> set[str]:
        """Give each tool and pair of these tasks to the task that began first; returns the tasks to judge."""
        changed = set(touched)
        for task in sorted(changed):
            one = state.tasks[task]
            owner = (one.began_us, task)
            shape = _shape(one)
            last = state.owned.get(shape)
            if last is not None and last < owner:
                continue
            things = tuple(_things(one))
            for thing in things:
                before = state.owners.get(thing)
                if before is None:
                    if self._things >= self._things_max and not self._forget_agent(name):
                        self._evicted += 1
                        continue
                    self._things += 1
                elif before[1] == task:
                    state.owners[thing] = min(before, owner)
                    continue
                elif before < owner:
                    continue
                else:
                    loser = state.tasks.get(before[1])
                    if loser is not None and thing in loser.owns:
                        loser.owns -= {thing}
                        changed.add(before[1])
                state.owners[thing] = owner
                one.owns |= {thing}
            if shape and all(thing in state.owners for thing in things):
                if len(state.owned) >= SHAPES_MAX:
                    state.owned.clear()
                state.owned[shape] = max(state.owners[thing] for thing in things)
        return changed

    def _forget_agent(self, keep: str) -> bool:
        """Make room by the agent that was not heard of for longest."""
        for name in self._agents:
            if name != keep:
                gone = self._agents.pop(name)
                self._things -= len(gone.owners)
                for task in gone.tasks:
                    del self._tasks[name, task]
                self._evicted += len(gone.tasks)
                return True
        return False

    def _drop_oldest(self) -> None:
        (name, task), _ = self._tasks.popitem(last=False)
        self._evicted += 1
        state = self._agents[name]
        del state.tasks[task]  # what it owns it keeps: the agent has done it
        if not state.tasks:
            del self._agents[name]
            self._things -= len(state.owners)

    def _judge(self, name: str, state: _Agent, tasks: Iterable[str]) -> list[Finding]:
        said = []
        for task in sorted(tasks):
            one = state.tasks[task]
            if not one.owns and one.said is None:
                continue
            if one.began_us < state.last_us - JUDGED_DAYS * DAY_US:
                continue
            now = _finding(name, state, task, one)
            if now is not None and (one.said is None or differs(one.said, now)):
                said.append(now)
            elif now is None and one.said is not None:
                said.append(replace(one.said, version=state.rows.version(one.began_us // DAY_US), withdrawn=True))
            one.said = now
        return said


def _both(times: Times, seen: Times) -> tuple[Times, bool]:
    """What was known of a tool and what was seen of it, in any order; and whether that says more than their number."""
    first, last, boot, seq, calls = times
    began, ended, *call, more = seen
    changed = False
    if began < first or (began == first and call < [boot, seq]):
        first, (boot, seq), changed = began, call, True
    if ended > last:
        last, changed = ended, True
    return (first, last, boot, seq, calls + more), changed


def _shape(task: _Task) -> Shape:
    """Its shape; none where it has so many tools that this would cost as much as what it spares."""
    if len(task.tools) > SHAPED_TOOLS_MAX:
        return ()
    times = task.tools.values()
    return (*task.tools, *[a[0] < b[1] for a in times for b in times])


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows of one agent in a table."""

    agent: int
    first_us: int
    last_us: int
    days: list[tuple[int, int]]
    """Rows of each day since 1970."""
    tools: list[tuple[int, int, int, int, int, int, int]]
    """Task, tool, and `Times` of its rows; task by task."""


def _by_agent(rows: pa.Table, wanted: Ints, agent: Ints, task: Ints, resource: Ints) -> Iterator[_Group]:
    """By array, since a task's few calls are spread over as many rows."""
    time, calls = numbers(rows, "time")[wanted], numbers(rows, "calls")[wanted]
    boot, seq = (rows[name].to_numpy()[wanted] for name in ("call_boot", "call_seq"))
    key = (agent * (task.max() + 1) + task) * (resource.max() + 1) + resource
    order = np.lexsort((time, key))
    same = (key[order][1:] == key[order][:-1]) & (time[order][1:] == time[order][:-1])
    if same.any():  # of calls at one moment the first is the one with the lowest id
        order = np.lexsort((seq, boot, time, key))
    starts = np.flatnonzero(np.concatenate([[True], key[order][1:] != key[order][:-1]]))
    ends = np.append(starts[1:], len(order))
    low, high = order[starts], order[ends - 1]
    columns = (task[low], resource[low], time[low], time[high], boot[low], seq[low], np.add.reduceat(calls[order], starts))
    told = list(zip(*(column.tolist() for column in columns), strict=True))
    many, days = ends - starts, time[low] // DAY_US
    begins = np.flatnonzero(np.concatenate([[True], agent[low][1:] != agent[low][:-1]])).tolist()
    for begin, end in zip(begins, [*begins[1:], len(low)], strict=True):
        day, where = np.unique(days[begin:end], return_inverse=True)
        counts = np.bincount(where, many[begin:end]).astype(np.int64)
        yield _Group(
            int(agent[low[begin]]), int(time[low[begin:end]].min()), int(time[high[begin:end]].max()),
            list(zip(day.tolist(), counts.tolist(), strict=True)), told[begin:end],
        )  # fmt: skip


def _things(task: _Task) -> Iterable[Thing]:
    """The tools of a task, and its pairs: a tool and one, or itself, that was called at some time after it."""
    yield from task.tools
    for a, of_a in task.tools.items():
        for b, of_b in task.tools.items():
            if of_a[0] < of_b[1]:
                yield a, b


def points_of(new_tools: int, new_pairs: int) -> tuple[float, float]:
    """What new tools and new pairs of known tools are worth."""
    return min(TOOL_POINTS_MAX, TOOL_POINTS * new_tools), min(PAIR_POINTS_MAX, PAIR_POINTS * new_pairs)


def _finding(name: str, state: _Agent, task: str, one: _Task) -> Finding | None:
    if not one.owns or one.began_us - state.first_us < LEARNING_US:
        return None
    tools = sorted(thing for thing in one.owns if isinstance(thing, str))
    pairs = sorted(thing for thing in one.owns if isinstance(thing, tuple) and not {*thing} & {*tools})
    worth = points_of(len(tools), len(pairs))
    if sum(worth) < POINTS_MIN:
        return None
    told = [(one.tools[tool][0], tool) for tool in tools] + [(_after_us(one, *pair), " > ".join(pair)) for pair in pairs]
    session = "" if _TRACE.fullmatch(task) else task
    calls = sorted((times[0], times[2], times[3]) for times in one.tools.values())
    return Finding(
        detector=SEQUENCE, subject=f"agent={name} task={task}", window_us=0, agent=name, session=session,
        version=state.rows.version(one.began_us // DAY_US),
        started_us=one.began_us, ended_us=max(times[1] for times in one.tools.values()), time_us=_crossed(one, tools, pairs),
        terms=(
            Term(name="new tools", value=float(len(tools)), points=worth[0],
                 why=f"{len(tools)} tools that the agent had never called"),
            Term(name="new order", value=float(len(pairs)), points=worth[1],
                 why=f"{len(pairs)} pairs of known tools that it had never called in this order"),
        ),
        title=f"agent {name} called tools as it never had: {min(told)[1]}" + (f" and {len(told) - 1} more" if told[1:] else ""),
        calls=some_calls([call_id(boot, seq) for _, boot, seq in calls]),
        calls_count=sum(times[4] for times in one.tools.values()),
        evidence={
            "task": task, "agent_first_us": state.first_us, "new_tools": len(tools), "new_pairs": len(pairs),
            "tools": examples(tools, EXAMPLES_MAX), "pairs": examples(pairs, EXAMPLES_MAX),
        },
    )  # fmt: skip


def _after_us(task: _Task, a: str, b: str) -> int:
    """When b was called after a: the first time that is known for sure."""
    first_us = task.tools[b][0]
    return first_us if first_us > task.tools[a][0] else task.tools[b][1]


def _crossed(task: _Task, tools: list[str], pairs: list[tuple[str, str]]) -> int:
    """When what was new had reached `POINTS_MIN`."""
    steps = sorted([(task.tools[tool][0], 1, 0) for tool in tools] + [(_after_us(task, *pair), 0, 1) for pair in pairs])
    new_tools = new_pairs = 0
    for time_us, tool, pair in steps:
        new_tools, new_pairs = new_tools + tool, new_pairs + pair
        if sum(points_of(new_tools, new_pairs)) >= POINTS_MIN:
            return time_us
    return steps[-1][0]
