"""Traces as one HTML page that loads nothing: for an incident, on a screen or on paper, by day or by night.

Every text of a record is escaped, and its control and direction characters are spelled out. The page forbids itself scripts and
everything from elsewhere (Content Security Policy, level 3), so that a text that got through would still do nothing.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from pipeline.cli.chainview import ASSURANCES, GRADES, Node, Shown, acts, facts, head, tree, warning, where
from pipeline.cli.common import printable

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --pale: #57606a; --line: #c9d1d9; --back: #ffffff; --bad: #b3261e;
  --warn: #8a5a00; --good: #1a6b3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --pale: #9aa4ae; --line: #3d444d; --back: #0f1419;
  --bad: #ff8a80; --warn: #f0b849; --good: #6fd08c; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2.2rem; font-family: ui-monospace, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--pale); } dd { margin: 0; }
ul { list-style: none; margin: 0; padding: 0; }
ul ul { margin-left: .6rem; padding-left: 1.1rem; border-left: 2px solid var(--line); }
li { margin: .7rem 0; break-inside: avoid-page; }
.what { font-weight: 600; } .small { color: var(--pale); font-size: .87rem; } code { font-family: ui-monospace, monospace; }
.tag { border: 1px solid var(--line); border-radius: .3rem; padding: 0 .4rem; font-size: .8rem; margin-right: .4rem; }
.deny, .forged, .widened { color: var(--bad); } .gap, .inferred, .provisional { color: var(--warn); }
.complete { color: var(--good); }
@media print { :root { --ink: #000; --pale: #333; --line: #999; --back: #fff; --bad: #900; --warn: #640; --good: #053; }
  body { margin: 0; max-width: none; font-size: 10pt; } }
"""


def page(shown: Sequence[Shown], asked: str, more: int) -> str:
    """The whole page; `more` traces are not on it."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>Wardline: chain of {_text(asked)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>Chain of {_text(asked)}</h1>",
    ]
    for one in shown:
        parts += _trace(one)
    if more:
        parts.append(f'<p class="small">{more} older traces of this session are not shown.</p>')
    parts += [*_legend(), "</body>\n</html>\n"]
    return "\n".join(parts)


def _text(value: str) -> str:
    return escape(printable(value), quote=True)


def _trace(one: Shown) -> Iterator[str]:
    yield f"<section>\n<h2>{_text(one.trace.trace_id)}</h2>\n<dl>"
    for name, said in head(one)[1:]:
        mark = f' class="{one.trace.grade}"' if name == "grade" else ""
        yield f"<dt>{name}</dt><dd{mark}>{_text(said)}</dd>"
    yield "</dl>\n<ul>"
    for node in tree(one):
        yield from _node(node, None)
    yield "</ul>\n</section>"


def _node(node: Node, above: Node | None) -> Iterator[str]:
    edge, call = node.edge, node.call
    how = f'<span class="tag {edge.assurance}">{edge.assurance}</span>' if edge.assurance else ""
    denied = " deny" if call["verdict"] == "deny" else ""
    yield f'<li>{how}<span class="what{denied}">{_text(call["agent"] or "-")}</span> {_text(facts(node))}'
    yield f'<div class="small">{_text(where(node))}, call <code>{edge.call_id}</code></div>'
    if above is None or above.edge.chain != edge.chain:
        yield f'<div class="small">for {_text(acts(edge.chain))}</div>'
    if said := warning(edge):
        yield f'<div class="{edge.grade}">{_text(said)}</div>'
    if node.below:
        yield "<ul>"
        for one in node.below:
            yield from _node(one, node)
        yield "</ul>"
    yield "</li>"


def _legend() -> Iterator[str]:
    yield '<section class="small">\n<h2>What the words mean</h2>\n<dl>'
    for name, said in (*GRADES.items(), *((name, said) for name, said in ASSURANCES.items() if name)):
        yield f'<dt class="{name}">{name}</dt><dd>{_text(said)}</dd>'
    yield "</dl>\n</section>"
