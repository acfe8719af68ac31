"""The embedded store: chDB, the ClickHouse engine as a library, behind ClickHouse's HTTP protocol.

`run` is the process; a request meets the `front`, which asks `users` who it is and `guard` what it may, and gives what remains
to the `engine`.
"""

from pipeline.shells.store.run import run

__all__ = ["run"]
