"""What is noticed in the calls: aggregates in, findings out, pure and the same in any order of frames.

`aggregate` sums up each frame by agent, credential and domain; `dedupe` drops what was taken before; `interface` is what a
detector is.
"""
