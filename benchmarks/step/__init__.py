"""Benchmarks: one step of SCoRe, ours and another system's, in turn, on the same work.

Each side runs in a process of its own and takes steps when it is told to, so the two alternate on one machine and
their times are compared pair by pair. `workloads` says what is done, `work` writes it down for both sides, `ours`
and `trl_score` do it, `comparison` asks them in turn, `counts` and `machine` say what the machine could have done.
"""
