"""The process `wardline control`, in the order that a request meets it.

`run` is the process; `serve` listens and `api` answers; `books` are the log, its `journal` on disk and the `keyring` as one;
`publish` sends every change and the heartbeat, after `recover` has found what the `topic` lacks; `heard` knows who has applied
what; `watch` looks at the home's policies and keys.
"""

from pipeline.shells.control.run import run

__all__ = ["run"]
