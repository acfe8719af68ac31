"""What is noticed in the calls: aggregates in, findings out, pure and the same in any order of frames.

`aggregate` sums up each frame by agent, credential and domain; `dedupe` drops what was taken before; `interface` is what a
detector is; `columns` are its rows as numbers, `words` what it has said and has to say.

By agent: `denials` notices bursts of refusals, `volume` bytes far above an agent's own past, `sequence` tools in an order that
is new, `beacon` calls as regular as those of a program that waits for orders. `fuse` makes one risk of what the detectors say of an agent.
"""
