"""The kernels, in the order that a call meets them. Compiled, or loudly not: there is no pure Python stand-in.

`wires` are a door's connections, read and written beside its event loop; `heads` sorts the lines of an HTTP head; `decide`
answers whether a chain may act; `board` says whether any of it is revoked, paused or unknown by now, as the host wrote it with
`post` into `tables` in shared memory; `spool` writes the record before the call goes out, into files that `segments` maps;
`runs` reads it back in the host; `columns` turns spool bytes into the Arrow columns of a frame; in the worker `traces` holds
the calls of each trace, `opencalls` finds the decision that an end belongs to, `meter` knows what was told to whom, and
`beacon` how regularly. None but `wires` does IO beyond the board's and the spool's own files, none has module state. What they
share is inline: `streams.pxd` (sockets), `layout.pxd` (bytes), `text.pxd` (UTF-8), `words.pxd` (shared words, the clock, a
keyed hash).
"""
