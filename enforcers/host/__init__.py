"""One machine's enforcer host, in the order that a record meets it.

`doors` finds the spools of living and dead doors; `engine` cuts them and writes each cut to the `outbox`; `link` sends frames
to Kafka and hears what is stored; `host` is the process around them, which also adopts what hosts that are gone have left.
"""

from enforcers.host.host import run

__all__ = ["run"]
