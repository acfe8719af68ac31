"""The process `wardline work`, in the order that a message meets it.

`work` is the process; `registry` follows control, to know whose frames count, and what it knows is `kept`; `app` is Faust as we
need it, with the `consumer` that commits only what is done; `pump` takes each event, asks the core what it is and batches, with
`ports` for what it needs of the others, `entries` for what waits in a batch and `patience` for a store that is away; `sink`
writes a batch to ClickHouse, `notes` how far lanes are; `herald` tells the hosts what is stored; `scribe` stores what control
has said and `acks` who has applied it; what is refused, `refusals` say.

`watch` puts together what looks at the calls: the `tap` at each batch, the `carrier` of its sums to the `lookout`, whose
`ear` hears what is in them, `parts` for the detectors of a partition, `past` for what is read and written, each at a `desk` of
its own, `filing` for findings on their way, and `cases` where they are filed. What rules say of them the `responder` has
revoked, and it asks `answered` what was done before. `watchdog` ends a worker that lives but does not move; `metrics` are its
figures.
"""

from pipeline.shells.worker.work import run

__all__ = ["run"]
