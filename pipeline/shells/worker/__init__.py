"""The process `wardline work`, in the order that a message meets it.

`work` is the process; `registry` follows control, to know whose frames count; `app` is Faust as we need it, with the
`consumer` that commits only what is done; `pump` takes each event, asks the core what it is and batches, with `ports` for what
it needs of the others and `patience` for a store that is away; `sink` writes a batch to ClickHouse; `herald` tells the hosts
what is stored; `scribe` stores what control has said and `acks` who has applied it; `responder` has revoked what rules say of
findings, and asks `answered` what was done before; `watchdog` ends a worker that lives but does not move; `metrics` are its
figures.
"""

from pipeline.shells.worker.work import run

__all__ = ["run"]
