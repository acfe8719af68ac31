"""Both ends of the wire in C, so that neither is what a proxy waits for: `origin.c` answers, `load.c` asks.

`tools` compiles them into `.cache/wire`, runs them, pins who is measured to a processor of its own, and reads what a process
has used of one.
"""
