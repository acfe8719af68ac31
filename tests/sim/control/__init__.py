"""Control simulated whole: one seed, one history of control, its log, two hosts that obey it, and their doors.

`test_control_histories` runs a thousand of them, `test_control_bugs` shows that they would notice; `python -m
tests.sim.control --seed N` prints one. `world` makes the steps and holds everything together, `operators` have their wishes,
`troubles` come, `drain` ends it; `rules` says what must hold. `journal` stands in for the one on the disk, with control's own
log in memory; `control` publishes and hears; `topic` stands in for the broker, where `attacks` write what they like; `host`
runs the shipped feed on a board of shared memory; `door` runs the shipped gate and the replay's own door. `shipped` puts the
story's clock into them, `mutants` puts bugs there.
"""
