"""The embedded store: chDB, the ClickHouse engine as a library, behind ClickHouse's HTTP protocol.

`run` is the process. A request meets the `front`, which asks `users` who it is, takes the body into `memory`, and lets the
`guard` read it: the `lexer` gives it tokens, `statement` says what they ask and where an insert's data begins. It is answered
with a `refusal`, or what the client said before in its `sessions` and the query itself go to the `engine`.
"""

from pipeline.shells.store.run import run

__all__ = ["run"]
