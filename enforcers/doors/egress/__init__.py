"""The door that HTTP clients use as their proxy, in the order that a call meets it.

`orders` are what the host tells each door process when it starts it, and `run` is that process. `door` is what all of its
connections share: `client` is one `connection` of them and reads its requests, `last` is what it knows of the one before,
`asking` makes a call of each, `flight` is a call that was let out, `pool` keeps the connections to origins and `origin` is one.
`look` is the door's clock: the board, and every limit of time. `metrics` are its figures.
`identify` knows who calls, and `scrypt` checks a secret that it has not seen before.
`resolve` says where a name leads, `own` where Wardline itself listens, and `dial` judges each address just before it connects.
A `tunnel` is what CONNECT asks for; `ends` are its two connections, and `tunnels` are all that a door has.
"""
