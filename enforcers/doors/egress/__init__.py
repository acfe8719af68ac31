"""The door that HTTP clients use as their proxy, in the order that a call meets it.

`orders` are what the host tells each door process when it starts it.
`identify` knows who calls, and `scrypt` checks a secret that it has not seen before.
`resolve` says where a name leads, `own` where Wardline itself listens, and `dial` judges each address just before it connects.
A `tunnel` is what CONNECT asks for; `ends` are its two connections, and `tunnels` are all that a door has.
"""
