"""Other proxies, for comparison: `setup` brings them, `programs` says how each is run with policy and record on.

`setup` puts Debian's packages and an environment of Python's own into `.cache/peers`, without touching the system; what cannot
be had is skipped by name. `mitm_policy` and `proxy_policy` are add-ons for mitmproxy and proxy.py, which load them by path:
the same list of hosts, the same line in a log. `python -m benchmarks.peers.setup` only fetches.
"""
