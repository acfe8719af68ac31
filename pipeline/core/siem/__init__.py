"""Feeding sinks of security events, without IO: what to read next, what to send again, and when.

`cursor` is how far a sink is, whatever the order in which rows become visible; `choice` says which rows are due, and makes the
events of them; `frames` knows the frames whose refused calls were sent; `feeder` is one sink's turn of mind: look, send, write
the cursor, wait; `questions` are what the store is asked; `framing` are the bytes of each kind of sink.
"""
