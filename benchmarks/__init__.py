"""One question a module; `python -m benchmarks` asks them all and fails when a limit is missed. Ratios hold on any machine.

`spool`: what does a record cost before a call may go out? `decide`: what does a decision cost, and does it grow with the
policies? `pipeline`: how fast, how small and how soon are calls in the store? `agentdojo` and `sample` make input:
`python -m benchmarks.agentdojo SRC OUT.jsonl` turns AgentDojo's runs into recorded calls, `python -m benchmarks.sample` makes
the calls that Wardline comes with.
"""
