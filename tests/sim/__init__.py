"""The pipeline simulated whole: one seed, one history.

`test_histories` runs a thousand of them, `test_planted_bugs` shows that they would notice; `python -m tests.sim --seed N`
prints one. `telling` does all three. `world` makes the steps and holds everything together; `story` has its random numbers,
its clock and its log; `rules` says what must hold. From left to right: `doors` write with the shipped spool on the faulty
`disk`; `host` runs the shipped engine and link; `kafka` stands in for the broker, where `attacks` write what they like;
`group` shares the partitions among its workers; `worker` runs the shipped pump; `store` stands in for ClickHouse. `shipped`
puts the story's clock and a spy into the shipped code, `mutants` puts bugs there.
"""
