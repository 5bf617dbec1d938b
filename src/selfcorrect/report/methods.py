"""Group runs into methods: runs whose settings differ only in the seed form one method.

A method takes its name from its directories (``runs/no-bonus/seed-3`` is "no-bonus") or, if those say nothing, from its
settings. The settings also determine the paper's row that it corresponds to, if any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.report.published import MATH
from selfcorrect.report.sources import Run
from selfcorrect.script import current_revise
from selfcorrect.storage.evaluation_dir import flat
from selfcorrect.types import Role

NOT_THE_METHOD = (
    "seed",
    "log.",
    "model.device",
    "model.cpu_kernels",
    "rollout.max_num_seqs",
    "optimizer.micro_batch_tokens",
    "optimizer.share_prompts",
)
"""Settings that do not change the method: the seed, logging, the device, and sizes that affect memory and speed only."""
SEED_IN_NAME = re.compile(r"(^|[-_. ])seed[-_. ]?\d+(?=$|[-_. ])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Method:
    """Runs of one configuration, one per seed, in the order of the seeds.

    ``differences`` lists the settings that differ from the first method's; ``paper`` is the key of the paper's row, or None.
    """

    name: str
    runs: Sequence[Run]
    differences: Sequence[str]
    paper: str | None

    @property
    def card(self) -> Mapping[str, Any]:
        """Return the card in the runs' directory, see `sources.Run`."""
        return self.runs[0].card

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def final(self) -> str:
        return self.runs[0].final

    @property
    def models(self) -> list[str]:
        """Return the models that any of its runs has evaluated, in order."""
        return list(dict.fromkeys(model for run in self.runs for model in run.models))

    @property
    def verifies(self) -> bool:
        """Return whether its conversations have verifications, so that its base was asked something else than other bases."""
        revise = self.runs[0].settings.get("task", {}).get("revise")
        turns = revise if isinstance(revise, list) else []
        return any(isinstance(turn, Mapping) and turn.get("role") == Role.VERIFICATION for turn in turns)


def group(runs: Sequence[Run]) -> tuple[list[Method], list[Run]]:
    """Return the methods in the paper's order (SCoRe first, methods unknown to the paper last) and the runs left out.

    Runs that repeat a configuration and a seed are left out.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[int, Run]] = {}
    repeated = []
    for run in runs:
        own = flat_settings(run.settings)
        same = groups.setdefault(tuple(sorted((k, repr(v)) for k, v in own.items())), {})
        if run.seed in same:
            repeated.append(run)
        else:
            same[run.seed] = run
    members = [[same[seed] for seed in sorted(same)] for same in groups.values()]
    members.sort(key=lambda runs: _place(runs[0]))
    settings = [flat_settings(runs[0].settings) for runs in members]
    differences = [different(own, settings[0]) for own in settings]
    names = _names(members, differences)
    methods = [
        Method(name, runs, changed, _row_of(runs[0], name))
        for name, runs, changed in zip(names, members, differences, strict=True)
    ]
    return methods, repeated


def _place(run: Run) -> int:
    """Return a sort key: SCoRe first, then the order of the directories' cards or of the paper."""
    order = ["score", *MATH]
    row = _row_of(run, directory_title(run))
    if row == "score":
        return 0
    return int(run.card["place"]) + 1 if run.card else order.index(row) if row in order else len(order)


def _row_of(run: Run, name: str) -> str | None:
    """Return the key of the paper's row; a card's key has priority."""
    return run.card["key"] if run.card else paper_row(run.settings, name)


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that define the method, as ``{"stages.score.bonus": 3, ...}``."""
    found = {key: value for key, value in flat(settings).items() if not key.startswith(NOT_THE_METHOD)}
    if "task.revise" in found:  # older settings name the turns' roles differently
        found["task.revise"] = current_revise(found["task.revise"])
    return found


def different(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the differences in words; a stage that only one of the two has is one difference.

    >>> different({"stages.b.steps": 1, "kl.x": 2}, {"stages.a.steps": 1, "stages.b.steps": 1, "kl.x": 1})
    ['no stage a', 'kl.x = 2 instead of 1']
    """
    here, there = _stages(settings), _stages(others)
    found = [f"no stage {name}" for name in there if name not in here]
    found += [f"stage {name} added" for name in here if name not in there]
    apart = tuple(f"stages.{name}." for name in {*here} ^ {*there})
    for key in dict.fromkeys([*settings, *others]):
        if settings.get(key) != others.get(key) and not (apart and key.startswith(apart)):
            found.append(f"{key} = {_shown(settings.get(key))} instead of {_shown(others.get(key))}")
    return found


def _stages(flat: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.split(".")[1] for key in flat if key.startswith("stages.")))


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _names(members: Sequence[Sequence[Run]], differences: Sequence[Sequence[str]]) -> list[str]:
    """Return a unique name for each group."""
    names: list[str] = []
    for runs, changed in zip(members, differences, strict=True):
        titles = {run.card.get("title") or directory_title(run) for run in runs}
        short = "; ".join(changed) or runs[0].final
        name = titles.pop() if len(titles) == 1 else short
        if name in names:
            name = f"{name} ({short})"
        while name in names:
            name += "'"
        names.append(name)
    return names


def directory_title(run: Run) -> str:
    """Return the user's name of a run: its directory's name without the seed, or else its parent directory's name.

    Both ``runs/no-bonus/seed-3`` and ``runs/no-bonus-seed-3`` give ``no-bonus``.
    """
    path = run.path.resolve()
    for name in (path.name, path.parent.name):
        left = SEED_IN_NAME.sub("", name).strip("-_. ")
        if left:
            return left
    return run.final


# ---------------------------------------------------------------- which row of the paper it is

ALIASES = {
    "self-refine": ("selfrefine",),
    "star": ("star", "stard"),
    "star+": ("stardplus", "stard+", "starplus", "star+"),
    "pair-sft": ("pairsft", "pairsftd"),
    "pair-sft+": ("pairsftdplus", "pairsftd+", "pairsftplus", "pairsft+"),
    "star-stage2": ("starinstage2", "starstage2", "starinsteadofrl", "starstageii"),
    "offline": ("withoutonlinefirstattempts", "noonlineturn1", "offlinefirstattempts"),
}
"""Names of methods that their settings do not identify, in lower case, without blanks and hyphens."""


def paper_row(settings: Mapping[str, Any], name: str) -> str | None:
    """Return the key of the paper's row that a method corresponds to: by its name, or else by its stages."""
    return row_of_name(name) or _row_of_stages(list(settings.get("stages", {}).values()))


def row_of_name(name: str) -> str | None:
    """Return the key of the paper's row with this name.

    >>> row_of_name("Self-Refine"), row_of_name("mine")
    ('self-refine', None)
    """
    plain = re.sub(r"[^a-z0-9+]", "", name.lower())
    return next((key for key, aliases in ALIASES.items() if plain in aliases), None)


VARIANTS = ("discount", "offline_share", "adaptive", "replay")


def _row_of_stages(stages: Sequence[Mapping[str, Any]]) -> str | None:
    shapes = []
    for stage in stages:
        own = stage.get("method", "score") != "score"
        if own or any(stage.get(key, 0) for key in VARIANTS) or "reward_weights" not in stage:
            return None  # a variant that the paper's table does not have
        bonus = "bonus" if stage.get("bonus", 0) > 0 else "plain"
        shapes.append((tuple(float(w) for w in stage["reward_weights"]), bonus))
    first, both = ((0.0, 1.0), "plain"), (1.0, 1.0)
    if shapes == [first, (both, "bonus")]:
        return "score"
    if shapes == [first, (both, "plain")]:
        return "no-bonus"
    if shapes == [(both, "bonus")]:
        return "no-stage1"
    if [weights for weights, _ in shapes] in ([(1.0,)], [(1.0, 0.0)]):
        return "single-turn"
    return None
