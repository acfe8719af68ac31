"""The kernels, in the order that a call meets them. Compiled, or loudly not: there is no pure Python stand-in.

`decide` answers whether a chain may act; `spool` writes the record before the call goes out, into files that `segments` maps;
`runs` reads it back in the host; `columns` turns spool bytes into the Arrow columns of a frame. None does IO beyond the
spool's own files, none has module state. What they share is inline: `layout.pxd` (bytes), `text.pxd` (UTF-8).
"""
