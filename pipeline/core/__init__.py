"""What is judged and counted without IO: a frame on its way in, and a change on its way out.

`intake` says what a message is: a frame to store, one that is known, one to put off, or a dead letter; `ipc` reads its payload
without trusting it; `ledger` knows which frames of each lane are stored; `batch` says when an insert is due; `rows` makes the
Arrow stream that is inserted.

`requests` says what a request to control may hold, `control` makes the next entries of the control log of it, and `standing` is
what is live. `respond` says what rules make of findings: whom to revoke, and when not to.

`stitch` says which call caused which, and for whom; `detect` is what is noticed in the calls. `parcel` is the message that
takes a batch's sums to whoever looks at them, and `seen` which frames he has taken.

`ocsf` spells what a SIEM is told, and `siem` says what is due.
"""
