"""The door that HTTP clients use as their proxy, in the order that a call meets it.

`orders` are what the host tells each door process when it starts it.
"""
