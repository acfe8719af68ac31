"""The calls of many enforcers, put together: who caused which call, for whom it was made, and how sure that is.

    records of a batch -> `stitcher` -> rows of `traces` and `edges`, findings
    rows of `calls`    -> `trace`    -> one Trace, for whoever asks (the same judgement)

`model` says what a trace is made of and what its grades mean; `kin` compares the chains of a call and of the call that caused
it; `timing` guesses the cause from times where nothing names it, and `habits` across traces from who calls whom; `judge` does
all that for many traces at once, from columns; `rows` makes the tables of it, `finding` what is wrong; `stitcher` holds the
traces that are alive, and `whos` who acts in them.
"""
