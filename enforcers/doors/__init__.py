"""Protocols at an egress point, in the order that a call meets them.

`spooler` is the folder that a door of any kind shares with its host, and the spool in it. The one door so far is fed by a file:
`recorded` reads it, `replay` decides and records its calls, `progress` keeps how far each file's last run has come.
"""
