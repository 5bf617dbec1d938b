"""Benchmarks of one SCoRe step: ours and another system's, alternating, on the same work.

Each side runs in its own process and takes a step on command, so the two alternate on one machine and their times are
compared pair by pair. `workloads` defines the work, `inputs` writes it down for both sides, `ours` and `trl_score` do it,
`comparison` alternates the sides, and `flops` and `roofline` compute what the machine could have reached.
"""
