"""What happens to a call after its enforcer, in the order that things happen.

`policy` parses and compiles what enforcers decide by; `core` judges frames, keeps the stored frontier and makes the entries of
the control log, without IO; `shells` are control, the worker, the embedded store and the embedded broker; `cli` is the command
line over all of it.
"""
