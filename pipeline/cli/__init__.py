"""The command line, in the order that a first hour meets it.

`main` is the parser and the last place where an error becomes one line; `common` finds the home and the configuration;
`processes` runs each process alone (`siem` the one that feeds the SIEM), `up` all of them under `supervise`; `status` says
how they are; `replay` feeds recorded calls through a host that `replayhost` starts and its `replaydoors`, and `replayview`
shows how far it is; `policy` checks policy files, and says which are in force.

What was recorded is asked for through `asking`: `calls` lists calls, and by `arrivals` follows them as they come; `chain`
draws the operation that one belongs to, by `chainview` or as the page of `chainpage`, and guesses by `chaincause`; `explain`
says what one means, in the words of `explained` and with its policies by `policytext`; `inventory` lists who and what was
seen, `top` what goes on now; `sql` asks the store anything. What was noticed is listed by `findings`, and `finding` says what
one means, what was done about it, or that it is false; `exceptions` are those that count as false,
and `respond` says what rules did, or would have.

What changes for everybody goes to control, and `applied` says who obeys it: `agent` for who may act, `revoke` and `pause` for
what must stop, `enrol` for enforcers and workers on other machines, `keys` for what control signs with, `audit` for who
changed what. `run` runs a program as an agent: `doors` finds it a door, `credential` what proves it,
`proxyenv` its environment, and the package `contain` keeps it where the door is the only way out. `deadletter` handles frames
that were refused. The package `demo` shows all of it at work in about a minute.
"""

from schemas.process import leave_out

# PyArrow looks for it when it first makes an array: 0.3 s and 50 MB of each process, of which none makes a data frame. The
# store's engine brings it along.
leave_out("pandas")
