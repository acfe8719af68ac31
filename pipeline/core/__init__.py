"""How a frame is judged and counted, without IO, in the order that a message meets it.

`intake` says what a message is: a frame to store, one that is known, one to put off, or a dead letter; `ipc` reads its payload
without trusting it; `ledger` knows which frames of each lane are stored; `batch` says when an insert is due; `rows` makes the
Arrow stream that is inserted.
"""
