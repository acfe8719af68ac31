"""What an enforcer thinks, without IO, in the order that a call meets it: time and ids come in as arguments.

What a door on the network is sent is read strictly and written anew by `http`.
A door on the network reads the one credential of a request (`credentials`), where it is a token its signature (`jws`) and its
`claims`, and has a `caller`; what nobody is known by is counted (`flood`).
A door hands over who acts for whom: `chain` says which links are decided and how deep it is. `call` decides, and says what to
record before the call goes out and when it has ended; `gate` refuses what control has forbidden by then. For a door on the
network, `tracing` reads where in a trace a call stands, `query` measures what a query string may carry out, `exchange` takes
the call from its decision to its end, and `refusal` is what its caller is told. On the host, `seal` turns records into signed
frames, `box` is one cut of them on disk, `lanes` number the frames and know what is due, and `ledger` knows how far every door
is sealed and stored.
`obey` makes of control's log what the doors are told, how long they may believe it, and what the host acknowledges; `gather`
puts the chunks of a policy bundle together.
What a call may reach is two questions more: `addresses` says which addresses may be dialled, `clienthello` reads the name that
the first bytes of a tunnel ask for.
"""
