"""The paper's numbers (arXiv 2409.12917, camera-ready) in %: t1, t2, delta, i->c, c->i.

They stand next to ours to compare the shape of the result only: models and tasks differ. The paper gives no intervals.
"""

from __future__ import annotations

from typing import NamedTuple


class PaperRow(NamedTuple):
    """A row of one of the paper's tables; None if it gives no number."""

    title: str
    t1: float
    t2: float
    delta: float
    i_to_c: float | None = None
    c_to_i: float | None = None
    repair: float | None = None


MATH = {
    "base": PaperRow("Base model", 52.6, 41.4, -11.2, 4.6, 15.8),
    "self-refine": PaperRow("Self-Refine", 52.8, 51.8, -1.0, 3.2, 4.2),
    "star": PaperRow("STaR, D", 55.4, 41.2, -14.2, 5.4, 19.6),
    "star+": PaperRow("STaR, D+", 53.6, 54.0, 0.4, 2.6, 2.2),
    "pair-sft": PaperRow("Pair-SFT, D", 52.4, 54.2, 1.8, 5.4, 3.6),
    "pair-sft+": PaperRow("Pair-SFT, D+", 55.0, 55.0, 0.0, 0.0, 0.0),
    "score": PaperRow("SCoRe", 60.0, 64.4, 4.4, 5.8, 1.4),
    "single-turn": PaperRow("Without multi-turn training (single-turn RL)", 61.8, 59.4, -2.4),
    "no-stage1": PaperRow("Without Stage I", 59.2, 61.4, 2.2),
    "no-bonus": PaperRow("Without reward shaping", 60.0, 62.6, 2.6),
    "star-stage2": PaperRow("STaR instead of REINFORCE in Stage II", 56.2, 58.4, 2.2),
    "offline": PaperRow("Without online turn-1 samples", 60.4, 60.6, 0.2),
}
"""Tables 1 and 4: MATH, Gemini 1.5 Flash."""

CODE = {
    "base": PaperRow("Base model", 53.7, 56.7, 3.0, 7.9, 4.9, 47.3),
    "self-refine": PaperRow("Self-Refine", 53.7, 52.5, -1.2, 9.8, 11.0, 30.7),
    "pair-sft": PaperRow("Pair-SFT", 56.1, 54.3, -1.8, 4.3, 6.1, 59.8),
    "score": PaperRow("SCoRe", 52.4, 64.6, 12.2, 15.2, 3.0, 60.6),
}
"""Table 2: HumanEval (and repair of given programs, MBPP-R), Gemini 1.0 Pro."""
