"""The process `wardline siem`, in the order that a finding meets it.

`run` is the process: one `line` for each sink, which does what its feeder (`pipeline.core.siem`) says; `reader` reads what is
new from the store, as the reader user; `sinks` hand it over: a file, Splunk, syslog, the topic `alerts`; `metrics` are the
figures. `sample` sends one event that nobody has made.

It stands beside the path of a call: no door, host or worker waits for it, and a sink that is away costs disk nowhere, since
what it has not taken is in the store.
"""

from pipeline.shells.siem.run import run
from pipeline.shells.siem.sample import send_sample

__all__ = ["run", "send_sample"]
