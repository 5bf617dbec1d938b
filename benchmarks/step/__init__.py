"""Measure one SCoRe step, ours and another system's, alternating on the same work.

Each side runs in its own process and takes a step on command, so that times are compared pair by pair on one machine.
`workloads` defines the work, `inputs` writes it down for both sides, `ours` and `trl_score` do it, `comparison`
alternates the sides, and `flops` and `roofline` compute what the machine could have reached.
"""
