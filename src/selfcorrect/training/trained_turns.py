"""The columns of the trainer's tensors: the turns of a script that earn rewards, with their weights and anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selfcorrect.config.stages import VERIFYING, ReinforcementStage, StageConfig, SupervisedStage
from selfcorrect.errors import ConfigError
from selfcorrect.script import Script
from selfcorrect.types import TRAINED_ROLES, Role

LETTERS = {Role.ATTEMPT: "t", Role.VERIFICATION: "v"}
"""How metrics name the turns of a role: attempts t1, t2, ..., verifications v1, v2, ..."""


@dataclass(frozen=True, slots=True)
class TrainedTurn:
    """A trained turn: its role, its name in metrics, the weight of its reward, and its KL coefficients by reference."""

    role: Role
    name: str
    weight: float
    kl_coefs: Mapping[str, float]


def trained_turns(stage: ReinforcementStage, script: Script) -> tuple[TrainedTurn, ...]:
    """Return the trained turns of a script, in order, and the verification of drafts last, if the stage has any.

    Attempts have the stage's settings per turn, verifications `verified`.
    """
    found: list[TrainedTurn] = []
    for turn in script.user_turns():
        if turn.role not in TRAINED_ROLES:
            continue
        count = sum(other.role is turn.role for other in found)
        attempt = turn.role is Role.ATTEMPT
        weight = stage.reward_weights[count] if attempt else stage.verified.weight
        anchors = stage.kl_coefs[count] if attempt else stage.verified.kl_coefs
        found.append(TrainedTurn(turn.role, f"{LETTERS[turn.role]}{count + 1}", weight, anchors))
    if stage.verifies_drafts:
        found.append(TrainedTurn(Role.VERIFICATION, "v1", stage.verified.weight, stage.verified.kl_coefs))
    return tuple(found)


def check_script(name: str, stage: StageConfig, script: Script) -> None:
    """Check that a stage can be trained on a script.

    Raises:
        ConfigError: it cannot; the message says which setting to change.
    """
    verified = any(turn.role is Role.VERIFICATION for turn in script.later)
    if isinstance(stage, SupervisedStage):
        roles = [turn.role for turn in script.with_turns(stage.turns).user_turns()]
        if stage.told and roles != [Role.ATTEMPT, Role.VERIFICATION, Role.ATTEMPT]:
            raise ConfigError(
                f"stages.{name}.method = {stage.method!r} trains conversations of an attempt, a verification and an attempt, but "
                f"task.revise makes them of {', '.join(roles)}: set it to two turns, "
                '{ text = ..., role = "verification" } and { text = ..., when = "wrong" }.'
            )
        if script.conditional and not stage.told:
            raise ConfigError(
                f"stages.{name}.method = {stage.method!r} makes pairs of two attempts, but task.revise asks for a second one "
                "only under a condition (when): leave the condition out, or train by reinforcement learning."
            )
        return
    if not isinstance(stage, ReinforcementStage):
        return
    if verified and (stage.revisions > 1 or stage.baseline == "fitted"):
        raise ConfigError(
            f'stages.{name} has revisions = {stage.revisions} and baseline = "{stage.baseline}", which are for scripts of '
            'attempts alone, and task.revise asks for a verification: set revisions = 1 and baseline = "rloo".'
        )
    if verified and stage.max_gen_batches > 1:
        raise ConfigError(
            f"stages.{name}.max_gen_batches = {stage.max_gen_batches} looks for a signal in the attempts alone, and "
            "task.revise asks for a verification, which has rewards of its own: set max_gen_batches = 1."
        )
    if verified and (stage.alternates or stage.distills):
        raise ConfigError(
            f'stages.{name}.method = "{stage.method}" trains attempts alone, and task.revise asks for a verification: leave it '
            "out, or choose another method."
        )
    if stage.method in VERIFYING and not verified:
        raise ConfigError(
            f'stages.{name}.method = "{stage.method}" trains verifications, but task.revise asks for none: set it to two turns, '
            '{ text = ..., role = "verification" } and { text = ..., when = "wrong" }.'
        )
    if stage.verifies_drafts and verified:
        raise ConfigError(
            f'stages.{name}.method = "{stage.method}" verifies drafts on prompts of their own, but task.revise also asks for '
            "verifications in the conversation: leave these out."
        )
    if stage.verification is not None and not verified and not stage.verifies_drafts:
        raise ConfigError(
            f"stages.{name}.verification rewards verification turns, but task.revise asks for none: add one, or leave it out."
        )
