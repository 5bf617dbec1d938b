"""What a method of reinforcement learning is: how the verdicts of a step become advantages. Pure functions of tensors.

A method of your own is a file and a line. The file holds a function with the signature of `Method`; the line names it in a
stage, ``method = "my_package.my_method:advantages"``, or registers it in the package's ``pyproject.toml``::

    [project.entry-points."selfcorrect.methods"]
    mine = "my_package.my_method:advantages"
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from torch import Tensor

from selfcorrect.config.schema import ReinforcementStage
from selfcorrect.errors import ConfigError

GROUP = "selfcorrect.methods"
BUILT_IN = {"score": "selfcorrect.method.score:advantages"}


@dataclass(frozen=True, eq=False)
class StepOutcome:
    """What a step's episodes earned, before any shaping. The episodes of a problem stand next to each other.

    Attributes:
        rewards_NK: the binary reward of every attempt.
        penalty_NK: the KL penalty in nats that is taken from a turn's reward, its coefficient included; zero where the
            KL is a term of the loss.
        online_NK: False where somebody else than the policy sampled the attempt; such a turn is not trained.
        group: G, episodes per problem.
    """

    rewards_NK: Tensor
    penalty_NK: Tensor
    online_NK: Tensor
    group: int


Method = Callable[[StepOutcome, ReinforcementStage], Tensor]
"""Maps a step's outcome and the stage's settings to advantages [N, K], one per turn; all tokens of a turn share its own."""


@cache
def find_method(name: str) -> Method:
    """Return the method called ``name``: a built-in one, one that a package registers, or ``module:attribute``.

    Raises:
        ConfigError: there is no such method, or it cannot be imported.
    """
    known = {**{point.name: point.value for point in entry_points(group=GROUP)}, **BUILT_IN}
    target = known.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "Write one of these, or module:attribute."
        raise ConfigError(f"method {name!r} is not known; there are {', '.join(sorted(known))}. {hint}")
    try:
        found: Method = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"method {name!r} cannot be imported: {error}.") from error
    return found
