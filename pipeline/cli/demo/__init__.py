"""`wardline demo`: an agent is turned by a poisoned page, and a token is stolen; both are noticed and revoked, on this machine.

`command` is the command. `play` is the story, `stage` the home that it is told in, `site` the origins and names that the demo
brings, `agent` the program that is governed and `cast` how it is run, `facts` what the store says of it, `show` how that is
printed.
"""
