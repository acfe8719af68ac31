"""Protocols at an egress point, in the order that a call meets them.

`spooler` is the folder that a door of any kind shares with its host, and the spool in it. `obeyed` is its view of the host's
board and its word on what it has applied, `matchers` the policies that it decides by, `names` what the doors of a home are
called. `egress` is the door of HTTP clients. Another one is fed by a file: `recorded` reads it, `feeder` is the process that
takes its lines one by one, `replay` decides and records each, `progress` keeps how far each file's last run has come.
"""
