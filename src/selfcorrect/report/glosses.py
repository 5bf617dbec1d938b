"""What the columns of the terminal's tables mean, a line for each, for whoever reads them for the first time."""

from __future__ import annotations

from collections.abc import Mapping

GLOSSES: Mapping[str, tuple[str, ...]] = {
    "attempts": (
        "Acc@t1, Acc@t2: correct at the first and the second attempt; delta: their difference, i->c less c->i.",
        "i->c, c->i: incorrect answers made correct, and correct ones made incorrect.",
    ),
    "draft_swap": (
        "  Second attempts at another problem's draft: as good as with its own if the model does not read it.",
    ),
    "independent_resample": (
        "  First attempts sampled once more: what another sample alone gives, without any draft.",
    ),
    "made_of": (
        "  re-answering: what asking again gives after a blind draft, one that says nothing of the problem.",
        "  keep, repair: what reading its own draft gives beyond that, where the draft was correct, and where it was incorrect.",
    ),
    "detection": (
        "  J: of incorrect less of correct; above 0, it changes incorrect answers more often than correct ones.",
        "  then correct, then incorrect: how many changed incorrect answers end correct, and changed correct ones incorrect.",
        "  m_w, m_r: second attempts that are correct after an incorrect and after a correct first one.",
    ),
    "dependence": (
        "  d: how much likelier a second attempt is correct after a correct first one than after an incorrect one, by problem.",
        "  L_w, L_r: what a second attempt gains over another first attempt, after an incorrect and after a correct one.",
    ),
}
"""By the table: what stands below it."""
