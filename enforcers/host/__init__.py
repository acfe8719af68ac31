"""One machine's enforcer host, in the order that a record meets it.

`doors` finds the spools of living and dead doors; `engine` cuts them and writes each cut to the `outbox`; `link` sends frames
to Kafka and hears what is stored. The other way, `feed` reads control's log and tells the doors through the board, `bundles`
brings the policies that it names, and `acks` says what each door has applied. `keeper` keeps the egress doors alive. `clients`
is what they share of Kafka, and `host` the process around them, which also adopts what hosts that are gone have left.
"""

from enforcers.host.host import run

__all__ = ["run"]
