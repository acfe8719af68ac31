"""One question a module; `python -m benchmarks` asks them all and fails when a limit is missed. Ratios hold on any machine.

`spool`: what does a record cost before a call may go out? `decide`: what does a decision cost, and does it grow with the
policies? `board`: what does a look at the board cost, and an entry of it? `control`: how soon is a revocation or an edited
policy obeyed, and how fast does a host join a long log? `pipeline`: how fast, how small and how soon are calls in the store?
`egress`: what does a call through the door cost beside other proxies, and how soon does a door obey? `loss`: which calls are
served and in no record, there and here? `respond`: how soon is an agent that leaks refused at every door? `wire` and `peers`
are what they measure with: both ends, and the other programs; `detectmemory` is what detectors keep of an agent.
`agentdojo` and `sample` make input: `python -m benchmarks.agentdojo SRC OUT.jsonl` turns AgentDojo's runs into recorded calls,
`python -m benchmarks.sample` makes the calls that Wardline comes with.
"""
