"""The rows of the comparison as data: title, table, and the configuration, built from SCoRe's.

Every trained row samples as many completions and takes as many optimizer steps as SCoRe; rows whose second attempts are
conditional sample at most as many. docs/paper.md describes each row, what the paper leaves open, and what we chose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.config.toml import with_overrides
from selfcorrect.errors import ConfigError
from selfcorrect.paper.recipe import Recipe, altered

ROUNDS = 3
OFFLINE = 0.25
PAPERS_DISCOUNT, ITS_ALPHA = 0.8, 1.0
ANCHORS = (1.0, 0.1, 0.01)
TREES = (3, 2, 4)


class Table(StrEnum):
    """The report's table that shows a row next to SCoRe."""

    METHODS = "methods"
    ABLATIONS = "ablations"
    VARIANTS = "variants"


class Budget(StrEnum):
    """What a trained row may spend: as many completions and updates as SCoRe, at most as many completions (attempts are
    sampled only under a condition), or numbers of its own."""

    EQUAL = "equal"
    AT_MOST = "at_most"
    OWN = "own"


@dataclass(frozen=True, slots=True)
class MethodRow:
    """A row; ``key`` names its directory and finds the paper's numbers, if the paper has the row.

    Attributes:
        title: its label in the report.
        description: what it is, in a few words.
        make: builds its configuration from SCoRe's. The same recipe must always give the same configuration.
        judged_by: the development accuracy by which a sweep chooses the row's settings.
        anchors: the row's own axis of a sweep: these multiples of Stage II's KL coefficient on the first attempt.
        budget: whether it spends as much as SCoRe; the report marks rows that need not.
        source: the file or the code that defines a row from outside the package; unset for a built-in row.
    """

    key: str
    title: str
    table: Table
    description: str
    make: Callable[[Recipe], Config]
    judged_by: Literal["acc_t1", "acc_t2"] = "acc_t2"
    anchors: Sequence[float] = (1.0,)
    budget: Budget = Budget.EQUAL
    source: str | None = None

    def configured(self, config: Config, overrides: Sequence[str] = ()) -> tuple[Recipe, Config]:
        """Return SCoRe's recipe and the row's configuration, both with ``key.path=value`` overrides.

        Raises:
            ConfigError: the configuration is not SCoRe's, or the row cannot be built from it.
        """
        recipe = Recipe.of(with_overrides(config, overrides))
        return recipe, self.make(recipe)

    def anchored_stage(self, config: Config) -> tuple[str, ReinforcementStage]:
        """Return the stage, and its name, whose KL coefficient on the first attempt `anchors` multiplies in a sweep."""
        recipe = Recipe.of(config)
        return recipe.second, recipe.stage2


def _self_refine(recipe: Recipe) -> Config:
    from selfcorrect.tasks.base import script_of, scripted  # heavy, and only this row needs the task's script

    config = recipe.config
    script = script_of(config, scripted(config.task.name, config.task.options))
    return recipe.staged({}, task={"revise": script.with_feedback().revise})


def _supervised(method: str, rounds: int, correct_pairs: str) -> Callable[[Recipe], Config]:
    def make(recipe: Recipe) -> Config:
        stage = {"method": method, "steps": recipe.steps, "learning_rate": recipe.stage2.learning_rate}
        stage |= {"rounds": min(rounds, recipe.steps), "correct_pairs": correct_pairs}
        return recipe.staged({method: stage}, rollout={"ahead": 0})  # it collects a round's pairs with the same weights

    return make


def _single_turn(recipe: Recipe) -> Config:
    """Train the first attempt only: one attempt per episode, so twice the episodes."""
    stage = recipe.stage2
    return recipe.alone(
        stage,
        batch_size=recipe.completions // recipe.steps,
        reward_weights=stage.reward_weights[:1],
        kl_coefs=stage.kl_coefs[:1],
        bonus=0.0,
    )


def _last_turn(recipe: Recipe) -> Config:
    stage = recipe.stage2
    return recipe.alone(
        stage, reward_weights=(0.0, stage.reward_weights[1]), kl_coefs=({}, stage.kl_coefs[1]), bonus=0.0
    )


def _star_stage2(recipe: Recipe) -> Config:
    stage = recipe.stage2
    star = {"method": "star", "rounds": min(ROUNDS, stage.steps), "correct_pairs": "all"}
    star |= {"steps": stage.steps, "batch_size": stage.batch_size, "learning_rate": stage.learning_rate}
    return recipe.staged({recipe.first: altered(recipe.stage1, None), "star": star})


def _weights(recipe: Recipe) -> dict[str, Any]:
    """Return Stage II's rewards with the second attempt weighted instead of the bonus."""
    first, second = recipe.stage2.reward_weights
    return {"bonus": 0.0, "reward_weights": (first, second + recipe.stage2.bonus)}


def _tree(recipe: Recipe) -> Config:
    """Spend a group's completions on fewer first attempts, each with several second ones."""
    group, batch = recipe.config.rollout.group_size, recipe.config.batch_size(recipe.stage2)
    budget, revision = recipe.replies(2) * group, recipe.replies(2) - 1
    for revisions in TREES:
        firsts, left = divmod(budget, 1 + revisions * revision)
        if firsts >= 2 and not left:
            rows = firsts * revisions
            stage = {
                "steps": recipe.steps,
                "batch_size": batch // group * rows,
                "revisions": revisions,
                **_weights(recipe),
            }
            return recipe.staged(
                {recipe.second: altered(recipe.stage2, stage)},
                rollout={"group_size": rows, "batch_size": batch // group * rows},
            )
    raise ConfigError(
        f"trees cannot spend the {budget} completions of a group of {group} episodes on first attempts with "
        f"{' or '.join(map(str, TREES))} revisions each: set rollout.group_size to 8, or leave the row out with --only."
    )


def _verifying(method: str, title: str, bonus: float) -> Callable[[Recipe], Config]:
    """Return what trains attempts, verifications and the second attempts that they ask for, in one stage, without KL."""

    def make(recipe: Recipe) -> Config:
        from selfcorrect.tasks.base import scripted, verified_script_of  # heavy, as for Self-Refine

        stage = {"method": method, "reward_weights": (1.0, 1.0), "bonus": bonus, "discount": 0.0, "kl_coefs": ({}, {})}
        stage |= {"steps": recipe.steps, "batch_size": _episodes_of_three(recipe, title), "adaptive": None}
        task = recipe.config.task
        script = verified_script_of(recipe.config, scripted(task.name, task.options))
        return recipe.staged({method: altered(recipe.stage2, stage)}, task={"revise": script.revise})

    return make


def _self_rewarding(recipe: Recipe) -> Config:
    """Fine-tune on filtered conversations for Stage I's steps, then reward the outcome of whole ones for Stage II's.

    The first stage writes its verifications, so that an episode takes at most two completions, as SCoRe's does. The KL to the
    model that it leaves has one coefficient, SCoRe's of the second attempt in proportion to the reward there.
    """
    from selfcorrect.tasks.base import scripted, verified_script_of  # heavy, as for Self-Refine

    one, two, config, group = recipe.stage1, recipe.stage2, recipe.config, recipe.config.rollout.group_size
    ift = {"method": "self_rewarding_ift", "steps": one.steps, "rounds": 1, "learn": "both", "correct_pairs": "equal"}
    ift |= {"batch_size": recipe.completions // recipe.steps // 2 // group * group, "learning_rate": one.learning_rate}
    held = {"ift": two.kl_coefs[1]["base"] / (two.reward_weights[1] + two.bonus)}
    stage = {"method": "self_rewarding", "reward_weights": (0.0, 1.0), "bonus": 0.0, "discount": 0.0, "adaptive": None}
    stage |= {"batch_size": _episodes_of_three(recipe, "Self-rewarding correction"), "kl_coefs": (held, held)}
    stage |= {"verification": {"weight": 0.0, "kl_coefs": held}}
    script = verified_script_of(config, scripted(config.task.name, config.task.options))
    return recipe.staged(
        {"ift": ift, "self_rewarding": altered(two, stage)}, task={"revise": script.revise}, rollout={"ahead": 0}
    )


def _thinktwice(recipe: Recipe) -> Config:
    """Train first attempts in one step and revisions of them in the next, with as many completions in both, without KL."""
    stage = {"method": "thinktwice", "reward_weights": (1.0, 1.0), "bonus": 0.0, "discount": 0.0, "kl_coefs": ({}, {})}
    stage |= {"steps": recipe.steps, "batch_size": 2 * recipe.config.batch_size(recipe.stage2), "adaptive": None}
    return recipe.staged({"thinktwice": altered(recipe.stage2, stage)}, rollout={"ahead": 0})


def _distilled(recipe: Recipe) -> Config:
    stage = {"method": "distilled", "steps": recipe.steps, "adaptive": None, **_weights(recipe)}
    return recipe.staged({recipe.second: altered(recipe.stage2, stage)}, rollout={"ahead": 0})


def _self_verification(recipe: Recipe) -> Config:
    """Train the first attempt and, in the same steps, the verification of drafts: one of them for every attempt."""
    stage, group = recipe.stage2, recipe.config.rollout.group_size
    completions = recipe.completions // recipe.steps
    if completions % (2 * group):
        raise ConfigError(
            f"Self-verification cannot divide the {completions} completions of a step into as many attempts as verifications, in "
            f"groups of {group}: change rollout.batch_size or rollout.group_size, or leave the row out with --only."
        )
    changes = {"method": "self_verification", "steps": recipe.steps, "batch_size": completions // 2, "bonus": 0.0}
    changes |= {"reward_weights": stage.reward_weights[:1], "kl_coefs": stage.kl_coefs[:1], "baseline": "rloo"}
    changes |= {"offline_share": 0.0, "offline_apart": False, "revisions": 1, "adaptive": None}
    return recipe.staged({"self_verification": altered(stage, changes)})


def _episodes_of_three(recipe: Recipe, title: str) -> int:
    """Return the episodes of a step that samples at most as many completions as SCoRe's, if each may take three.

    Raises:
        ConfigError: they are no group.
    """
    group = recipe.config.rollout.group_size
    completions = recipe.completions // recipe.steps
    episodes = completions // 3 // group * group
    if not episodes:
        raise ConfigError(
            f"{title} cannot spend the {completions} completions of a step on a group of {group} episodes, each "
            "with up to 3: lower rollout.group_size, or leave the row out with --only."
        )
    return episodes


def _adaptive(recipe: Recipe) -> Config:
    coefficient = recipe.stage1.kl_coefs[0]["base"]
    return recipe.changed(first={"adaptive": {"minimum": min(0.01, coefficient), "maximum": max(10.0, coefficient)}})


def _three_turns(recipe: Recipe) -> Config:
    """Train stages I(a), I(b) and II (docs/method.md, section 4); the batches keep the number of completions equal."""
    one, two = recipe.stage1, recipe.stage2
    early = max(1, recipe.steps // 4)
    pairs, triples = _batches_of_three_turns(recipe, early)
    beta1 = one.kl_coefs[1]["base"]
    extra = round(one.kl_coefs[0]["base"] - beta1, 12)  # rounded: 0.11 - 0.01 is 0.1
    held = {"base": beta1, "stage1a": max(0.0, extra)}
    stages = {
        "stage1a": altered(one, {"steps": early, "batch_size": pairs}),
        "stage1b": altered(
            one,
            {"steps": early, "batch_size": triples, "reward_weights": (0, 0, one.reward_weights[1]),
             "kl_coefs": (held, held, {"base": beta1})},
        ),
        recipe.second: altered(
            two,
            {"steps": recipe.steps - 2 * early, "batch_size": triples,
             "reward_weights": (*two.reward_weights, two.reward_weights[1]), "kl_coefs": (*two.kl_coefs, two.kl_coefs[1])},
        ),
    }  # fmt: skip
    return recipe.staged(stages, eval={"turns": max(3, recipe.config.turns)})


def _batches_of_three_turns(recipe: Recipe, early: int) -> tuple[int, int]:
    """Return the episodes per step of the two-turn stage and of the three-turn stages.

    The latter is as close to 2/3 of SCoRe's (less or more with feedback) as an exactly equal number of completions allows.

    Raises:
        ConfigError: no such numbers exist.
    """
    group, late = recipe.config.rollout.group_size, recipe.steps - early
    two, three = recipe.replies(2), recipe.replies(3)
    usual = recipe.completions / (two * recipe.steps)
    found = []
    for triples in range(group, int(usual) + 1, group):
        left = recipe.completions - three * late * triples
        if left > 0 and left % (two * early * group) == 0:
            found.append((left // (two * early), triples))
    if not found:
        raise ConfigError(
            f"three turns cannot sample exactly {recipe.completions} completions in {recipe.steps} steps with groups of {group}: "
            "change the stages' steps, rollout.batch_size or rollout.group_size, or leave the row out with --only."
        )
    return min(found, key=lambda sizes: (abs(sizes[1] - two / three * usual), sizes))


ROWS: Sequence[MethodRow] = (
    MethodRow("base", "Base model", Table.METHODS, "evaluated only", lambda r: r.staged({})),
    MethodRow("self-refine", "Self-Refine", Table.METHODS, "the base gives itself feedback, then revises", _self_refine),
    MethodRow("star", "STaR, D", Table.METHODS, "3 rounds on its own episodes that went from incorrect to correct",
        _supervised("star", ROUNDS, "none")),
    MethodRow("star+", "STaR, D+", Table.METHODS, "the same, plus episodes that stayed correct",
        _supervised("star", ROUNDS, "all")),
    MethodRow("pair-sft", "Pair-SFT, D", Table.METHODS, "incorrect first attempts, each with a correct response to its problem",
        _supervised("pair_sft", 1, "none")),
    MethodRow("pair-sft+", "Pair-SFT, D+", Table.METHODS, "the same, plus correct first attempts",
        _supervised("pair_sft", 1, "all")),
    MethodRow("score", "SCoRe", Table.METHODS, "the configuration itself, Stage I and Stage II", lambda r: r.config,
        anchors=ANCHORS),
    MethodRow("single-turn", "Single-turn RL", Table.ABLATIONS, "the first attempt only, twice the episodes", _single_turn,
        judged_by="acc_t1", anchors=ANCHORS),
    MethodRow("last-turn", "Last-turn RL", Table.ABLATIONS,
        "standard multi-turn RL, rewarded and trained on the second attempt only",
        _last_turn),
    MethodRow("no-stage1", "Without Stage I", Table.ABLATIONS, "Stage II for all the steps", lambda r: r.alone(r.stage2)),
    MethodRow("no-bonus", "Without the bonus", Table.ABLATIONS, "alpha = 0 in Stage II",
        lambda r: r.changed(second={"bonus": 0.0})),
    MethodRow("star-stage2", "STaR instead of RL in Stage II", Table.ABLATIONS,
        "3 rounds from Stage I's model, with correct pairs",
        _star_stage2),
    MethodRow("offline", "Without online first attempts", Table.ABLATIONS,
        "in Stage II half of the episodes train the second attempt on the base's first attempts, half train the first attempt",
        lambda r: r.changed(second={"offline_share": 0.5, "offline_apart": True})),
    MethodRow("weighted", "Turn 2 weighted by 1 + alpha, no r1 term", Table.VARIANTS,
        "in Stage II a plain weight instead of the bonus", lambda r: r.changed(second=_weights(r))),
    MethodRow("weighted-alone", "One stage, turn 2 weighted by 1 + alpha", Table.VARIANTS,
        "Stage II for all the steps, with a plain weight instead of the bonus",
        lambda r: r.alone(r.stage2, **_weights(r)), anchors=ANCHORS),
    MethodRow("fitted-alone", "One stage, fitted baseline", Table.VARIANTS,
        "Stage II for all the steps, less what the first attempt's verdict predicts of the second",
        lambda r: r.alone(r.stage2, **_weights(r), baseline="fitted"), anchors=ANCHORS),
    MethodRow("tree-alone", "One stage, trees", Table.VARIANTS,
        "as many completions: half the first attempts, each with three second attempts, which are each other's baseline",
        _tree, anchors=ANCHORS),
    MethodRow("discount-1", "Trajectory-level credit (discount 1)", Table.VARIANTS,
        "in Stage II the first attempt also earns the second's reward", lambda r: r.changed(second={"discount": 1.0})),
    MethodRow("discount-0.8", "Discount 0.8, alpha 1", Table.VARIANTS, "the paper's trial of a discount (A.4)",
        lambda r: r.changed(second={"discount": PAPERS_DISCOUNT, "bonus": ITS_ALPHA})),
    MethodRow("offline-mix", "SCoRe with offline base attempts", Table.VARIANTS,
        "a quarter of Stage II's first attempts come from the base", lambda r: r.changed(second={"offline_share": OFFLINE})),
    MethodRow("adaptive", "SCoRe, adaptive beta2", Table.VARIANTS, "Stage I's extra anchor of turn 1 follows the policy term",
        _adaptive),
    MethodRow("pag", "PAG", Table.VARIANTS,
        "one stage: an attempt, a verdict on it, a second attempt only if it says wrong; at most as many completions",
        _verifying("pag", "PAG", 1.0), budget=Budget.AT_MOST),
    MethodRow("s2r", "S2R's credit", Table.VARIANTS,
        "PAG's conversations; each turn is compared with the turns that came after the same rewards; at most as many completions",
        _verifying("s2r", "S2R's credit", 0.0), budget=Budget.AT_MOST),
    MethodRow("self-rewarding", "Self-rewarding correction", Table.VARIANTS,
        "fine-tuning on its own conversations with true verdicts, then RL in which every turn earns the outcome; at most as many "
        "completions",
        _self_rewarding, budget=Budget.AT_MOST),
    MethodRow("self-verification", "Self-verification", Table.VARIANTS,
        "single-turn RL, and in the same steps as many verifications of its own drafts, each on a prompt of its own",
        _self_verification, judged_by="acc_t1", anchors=ANCHORS),
    MethodRow("thinktwice", "ThinkTwice", Table.VARIANTS,
        "in one step the first attempt alone, twice the episodes; in the next as many revisions, of one draft a problem",
        _thinktwice),
    MethodRow("distilled", "Second attempts distilled into first ones", Table.VARIANTS,
        "one stage, turn 2 weighted by 1 + alpha; second attempts also train the first, less the mean of the first attempts",
        _distilled, anchors=ANCHORS),
    MethodRow("three-turns", "Three-turn SCoRe", Table.VARIANTS, "Stage I(a), Stage I(b), Stage II over three attempts",
        _three_turns),
)  # fmt: skip
"""All rows, in the report's order."""


def chosen_rows(only: Sequence[str], own: Sequence[MethodRow] = ()) -> list[MethodRow]:
    """Return the built-in rows and then one's ``own`` with these keys, or all of them.

    Raises:
        ConfigError: a key is unknown.
    """
    known = {row.key: row for row in (*ROWS, *own)}
    unknown = [key for key in only if key not in known]
    if unknown:
        raise ConfigError(
            f"unknown row {unknown[0]!r}: the rows are {', '.join(known)}. Give a row of your own with --row."
        )
    return [row for row in known.values() if not only or row.key in only]


MAX_SEEDS, MAX_DIGITS = 1000, 18


def chosen_seeds(text: str) -> list[int]:
    """Return the seeds that ``text`` asks for: how many, or which ones, so that machines can divide a comparison.

    >>> chosen_seeds("3"), chosen_seeds("3-5"), chosen_seeds("0,2")
    ([0, 1, 2], [3, 4, 5], [0, 2])

    Raises:
        ConfigError: the text is something else.
    """
    found: list[int] = []
    if any(len(digits) > MAX_DIGITS for digits in re.findall(r"\d+", text)):
        raise ConfigError(f"--seeds {text[:60]}: a seed has at most {MAX_DIGITS} digits.")
    for part in [f"0-{int(text) - 1}"] if text.isdecimal() and int(text) else text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or text == "0":
            raise ConfigError(f"--seeds {text}: give how many, such as 5, or which ones, such as 3-4 or 0,2.")
        added = range(int(first), int(last) + 1) if dash else [int(first)]
        if len(found) + len(added) > MAX_SEEDS:
            raise ConfigError(f"--seeds {text} names more than {MAX_SEEDS} seeds: divide the comparison.")
        found += added
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"--seeds {text} names {'no seed' if not found else 'a seed twice'}.")
    return found
