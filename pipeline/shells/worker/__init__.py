"""The process `wardline work`, in the order that a message meets it.

`work` is the process; `app` is Faust as we need it, with the `consumer` that commits only what is done; `pump` takes each
event, asks the core what it is and batches; `sink` writes a batch to ClickHouse; `herald` tells the hosts what is stored;
`watchdog` ends a worker that lives but does not move; `metrics` are its figures.
"""

from pipeline.shells.worker.work import run

__all__ = ["run"]
