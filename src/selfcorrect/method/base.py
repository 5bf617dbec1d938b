"""Methods of reinforcement learning, which turn the rewards of a step into advantages. Pure functions of tensors.

A new method takes one file and one line. The file holds a function with the signature of `Method`. The line names it in a
stage, ``method = "my_package.my_method:advantages"``, or registers it in your package's ``pyproject.toml``::

    [project.entry-points."selfcorrect.methods"]
    mine = "my_package.my_method:advantages"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from selfcorrect.config.plugins import Plugins
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.types import Role

METHODS = Plugins(
    "method",
    "selfcorrect.methods",
    {
        name: f"selfcorrect.method.{name}:advantages"
        for name in ("score", "pag", "s2r", "self_rewarding", "self_verification", "thinktwice", "distilled")
    },
)


@dataclass(frozen=True, eq=False)
class StepOutcome:
    """The rewards of a step's N episodes of K trained turns, before any shaping. The episodes of a problem are adjacent.

    Attributes:
        rewards_NK: the binary reward of every attempt and verification. A skipped attempt has that of the attempt before it.
        penalty_NK: the KL penalty to subtract from each turn's reward: nats times the coefficient. Zero if the KL is a term
            of the loss.
        online_NK: False where the policy did not sample the turn, which is then not trained: another model did, or the turn
            was skipped.
        group: G, episodes per problem.
        revisions: adjacent episodes that share a first attempt. It is online in the first of them alone.
        roles: the role of every turn; unset = all are attempts.
        present_NK: False where the turn was skipped; unset = no turn was.
    """

    rewards_NK: Tensor
    penalty_NK: Tensor
    online_NK: Tensor
    group: int
    revisions: int = 1
    roles: Sequence[Role] = ()
    present_NK: Tensor | None = None

    def columns(self, role: Role) -> list[int]:
        """Return the turns of a role, counted from 0."""
        roles = self.roles or (Role.ATTEMPT,) * self.rewards_NK.shape[1]
        return [k for k, other in enumerate(roles) if other is role]


Method = Callable[[StepOutcome, ReinforcementStage], Tensor]
"""Maps a step's outcome and the stage's settings to advantages [N, K]: one per turn, shared by all tokens of the turn."""


@cache
def find_method(name: str) -> Method:
    """Return the method ``name``: built in, registered by a package, or given as ``module:attribute``.

    Raises:
        ConfigError: the method does not exist or cannot be imported.
    """
    found: Method = METHODS.load(name)
    return found
