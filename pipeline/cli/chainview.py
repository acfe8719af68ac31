"""A trace as text and as a graph. Nothing that was recorded writes to the terminal, or into the graph's language."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.cli.asking import named, shown_span, shown_time
from pipeline.cli.calls import ended_of, place_of, verdict_of
from pipeline.cli.chaincause import Perhaps
from pipeline.cli.common import clock, printable, shown_size
from pipeline.core.stitch.model import Edge, Trace

ASSURANCES: Final[Mapping[str, str]] = {
    "signed": "whoever delegated has signed it",
    "issued": "our issuer minted the token",
    "observed": "its traceparent was seen at both doors",
    "inferred": "by time alone: it may be otherwise",
    "": "nobody is known to have caused it",
}

GRADES: Final[Mapping[str, str]] = {
    "provisional": "more of it may be on its way",
    "complete": "nothing is missing",
    "gap": "something is missing",
    "widened": "a call acts for fewer principals than the call that caused it",
    "forged": "a call acts for another root principal",
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A trace, its calls by their ids (columns of the view `calls`), and what the worker has said of it, if anything."""

    trace: Trace
    calls: Mapping[str, Mapping[str, Any]]
    stored: Mapping[str, Any] | None = None
    perhaps: Perhaps | None = None
    """What may have caused its first call, where that was asked for and can be told."""

    @property
    def differs(self) -> str:
        """In words, where the worker's last word is another; empty while it may still speak."""
        said = self.stored["grade"] if self.stored is not None else "complete"
        if self.trace.grade == "provisional" or said in ("provisional", self.trace.grade):
            return ""
        return f"the worker has said `{said}`" if self.stored is not None else "the worker has said nothing of it"


@dataclass(frozen=True)
class Node:
    """A call in the tree."""

    edge: Edge
    call: Mapping[str, Any]
    below: tuple["Node", ...]


def tree(one: Shown) -> tuple[Node, ...]:
    """The calls that nobody caused, with those that they caused, in the order of time."""
    below: dict[str, list[Node]] = {}
    # from the deepest call up: a node holds its children, and a parent need not be earlier than its child
    order = _from_below(one.trace.edges)
    made: dict[str, Node] = {}
    for edge in order:
        mine = sorted(below.pop(edge.call_id, ()), key=lambda node: (node.call["time"], node.edge.call_id))
        made[edge.call_id] = Node(edge, one.calls[edge.call_id], tuple(mine))
        if edge.parent:
            below.setdefault(edge.parent, []).append(made[edge.call_id])
    roots = [made[edge.call_id] for edge in one.trace.edges if not edge.parent]
    return tuple(sorted(roots, key=lambda node: (node.call["time"], node.edge.call_id)))


def _from_below(edges: Sequence[Edge]) -> list[Edge]:
    depth: dict[str, int] = {}
    parents = {edge.call_id: edge.parent for edge in edges}
    for edge in edges:
        way = []
        at = edge.call_id
        while at and at not in depth:
            way.append(at)
            at = parents[at]
        base = depth[at] if at else -1
        for step, one in enumerate(reversed(way), 1):
            depth[one] = base + step
    return sorted(edges, key=lambda edge: -depth[edge.call_id])


def head(one: Shown) -> list[tuple[str, str]]:
    """What is said of the whole trace: (name, text)."""
    trace = one.trace
    took = shown_span((trace.ended_us - trace.started_us) / 1000)
    denied = f", {trace.denied} refused" if trace.denied else ""
    began = f"{clock(trace.started_us // 1_000_000)}.{trace.started_us // 1000 % 1000:03d}"
    return [
        ("trace", trace.trace_id),
        ("grade", f"{trace.grade}: {trace.why or GRADES[trace.grade]}"),
        *([("", one.differs)] if one.differs else []),
        ("for", trace.root or "nobody"),
        *([("perhaps", _perhaps(one.perhaps))] if one.perhaps is not None else []),
        ("agents", ", ".join(trace.agents) or "-"),
        ("enforcers", ", ".join(trace.enforcers) or "-"),
        ("calls", f"{trace.calls}{denied}, {began} UTC, {took}"),
    ]


def _perhaps(one: Perhaps) -> str:
    return f"caused by call {one.call_id} of trace {one.trace_id} ({one.agent} to {named(one.resource)}): by time alone"


def facts(node: Node) -> str:
    """A call in one line, without who."""
    call = node.call
    moved = f"{shown_size(call['bytes_out'])} out, {shown_size(call['bytes_in'])} in"
    return (f"{call['action']} {place_of(dict(call))}: {verdict_of(dict(call))}, {ended_of(dict(call))}, {moved}, "
            f"{shown_span(call['duration_ms'])}")  # fmt: skip


def where(node: Node) -> str:
    """When, and at which door."""
    return f"{shown_time(node.call['time'])} {node.call['door']} of {node.call['enforcer']}"


def acts(chain: Sequence[str]) -> str:
    """Who acts for whom, root first."""
    return " -> ".join(chain) or "nobody"


def warning(edge: Edge) -> str:
    """What is wrong with a call, if anything is."""
    if not edge.why:
        return ""
    named = f" ({edge.named})" if edge.named and not edge.parent else ""
    return f"{edge.grade}: it {edge.why}{named}"


def text(one: Shown) -> str:
    """A trace for a terminal, in ASCII where the records are."""
    lines = [f"{name:<11}{printable(said)}".rstrip() for name, said in head(one)]
    for node in tree(one):
        lines += ["", *_lines(node, "", "", None)]
    return "\n".join(lines)


def _lines(node: Node, first: str, rest: str, above: Node | None) -> Iterator[str]:
    edge = node.edge
    how = f"({edge.assurance}) " if edge.assurance else ""
    bar = "|  " if node.below else "   "
    yield printable(f"{first}{how}{node.call['agent'] or '-'}  {facts(node)}")
    yield printable(f"{rest}{bar}{where(node)}, call {edge.call_id}")
    if above is None or above.edge.chain != edge.chain:
        yield printable(f"{rest}{bar}for {acts(edge.chain)}")
    if said := warning(edge):
        yield printable(f"{rest}{bar}! {said}")
    for number, one in enumerate(node.below, 1):
        last = number == len(node.below)
        yield from _lines(one, f"{rest}`- " if last else f"{rest}|- ", f"{rest}   " if last else f"{rest}|  ", node)


# -- a graph -------------------------------------------------------------------------------------------------------------

_COLOURS: Final[Mapping[str, str]] = {"complete": "black", "provisional": "gray40", "gap": "darkorange3", "widened": "red3",
                                     "forged": "red3"}  # fmt: skip
_STYLES: Final[Mapping[str, str]] = {"signed": "bold", "issued": "solid", "observed": "dashed", "inferred": "dotted"}


def dot(shown: Sequence[Shown]) -> str:
    """Traces in the DOT language: a node is a call, an edge goes from the call that caused to the one that was."""
    lines = ["digraph chain {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif", fontsize=10];',
             '  edge [fontname="sans-serif", fontsize=9];']  # fmt: skip
    for number, one in enumerate(shown):
        name = f"trace {one.trace.trace_id}: {one.trace.grade}"
        lines += [f"  subgraph cluster_{number} {{", f"    label={_quoted([name])};"]
        for edge in one.trace.edges:
            node = Node(edge, one.calls[edge.call_id], ())
            label = [f"{node.call['agent'] or '-'}", facts(node), where(node), f"for {acts(edge.chain)}"]
            label += [warning(edge)] if edge.why else []
            lines.append(f'    "{edge.call_id}" [label={_quoted(label)}, color="{_COLOURS[edge.grade]}"];')
        for edge in one.trace.edges:
            if edge.parent:
                look = f'[label="{edge.assurance}", style={_STYLES[edge.assurance]}]'
                lines.append(f'    "{edge.parent}" -> "{edge.call_id}" {look};')
        lines.append("  }")
    return "\n".join([*lines, "}"])


def _quoted(lines: Sequence[str]) -> str:
    """A label of several lines, each to the left."""
    escaped = [printable(one).replace("\\", "\\\\").replace('"', '\\"') for one in lines]
    return '"' + "".join(f"{one}\\l" for one in escaped) + '"'
