"""What stands at an egress point, in the order that a call meets it.

`doors` speak the protocols; `core` decides and says what to record, without IO; `host` seals the records of every door of
this machine into signed frames, keeps them on disk, and sends them until the pipeline says that they are stored.
"""
