"""A trained model against its base, paired by problem: did it fall below, and by more than chance allows?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.evaluation.evaluation import Evaluation
from selfcorrect.evaluation.flags import correct_at
from selfcorrect.evaluation.intervals import Interval, tango_interval
from selfcorrect.storage.episode_log import StoredEpisode


@dataclass(frozen=True, slots=True)
class AgainstBase:
    """The greedy accuracies of a model and of its base at one attempt at the same ``n`` problems.

    ``gained`` problems are correct with the model alone, ``lost`` ones with the base alone.
    """

    attempt: int
    n: int
    base: float
    model: float
    gained: int
    lost: int

    @property
    def difference(self) -> float:
        return (self.gained - self.lost) / self.n

    @property
    def ci95(self) -> Interval:
        """Return Tango's interval for the paired difference."""
        return tango_interval(self.gained, self.lost, self.n)

    @property
    def below(self) -> bool:
        """Return whether the model fell below its base, by chance or not."""
        return self.lost > self.gained

    @property
    def worse(self) -> bool:
        """Return whether the model fell below its base by more than chance allows: the whole interval is below 0."""
        return self.below and self.ci95[1] < 0

    def to_json(self) -> dict[str, Any]:
        """Return what a line of ``metrics.jsonl`` holds of it."""
        return {"attempt": self.attempt, "accuracy": self.base, "gained": self.gained, "lost": self.lost}

    @classmethod
    def of_look(cls, dev: Mapping[str, Any]) -> AgainstBase | None:
        """Return the comparison in a look at the development problems; None if it has none, or of another version."""
        stored = dev.get("base")
        if not isinstance(stored, Mapping):
            return None
        attempt = int(stored["attempt"])
        counts = stored["gained"], stored["lost"]
        return cls(attempt, int(dev["n"]), stored["accuracy"], dev[f"acc_t{attempt}"], *map(int, counts))

    def numbers(self) -> str:
        """Return the numbers in words.

        >>> AgainstBase(2, 80, 49 / 80, 40 / 80, 1, 10).numbers()
        'greedy Acc@t2 is 50.0%, the base has 61.3% (-11.2 points, 95% interval [-20.5, -3.9], paired on 80 problems)'
        """
        low, high = self.ci95
        return (
            f"greedy Acc@t{self.attempt} is {_percent(self.model)}%, the base has {_percent(self.base)}% "
            f"({_percent(self.difference, '+')} points, 95% interval [{_percent(low, '+')}, {_percent(high, '+')}], "
            f"paired on {self.n:,} problems)"
        )


def against_base(model: Sequence[StoredEpisode], base: Sequence[StoredEpisode]) -> AgainstBase:
    """Compare greedy episodes at the same problems in the same order, at the second attempt if both have one."""
    attempt = min(2, len(model[0].attempts), len(base[0].attempts))
    now, before = correct_at(model, attempt - 1), correct_at(base, attempt - 1)
    gained, lost = int((now & ~before).sum()), int((before & ~now).sum())
    return AgainstBase(attempt, len(now), float(before.mean()), float(now.mean()), gained, lost)


def below_base(evaluations: Mapping[str, Evaluation]) -> str | None:
    """Return the sentence with which the summary of a run begins whose last model fell below its base; else None."""
    last = list(evaluations)[-1]
    found = against_base(evaluations[last].episodes, evaluations["base"].episodes)
    if not found.below:
        return None
    chance = "" if found.worse else "; chance alone may explain this"
    return f"The run ended below its base: {found.numbers()}{chance}."


def _percent(fraction: float, sign: str = "") -> str:
    return f"{100 * fraction:{sign}.1f}"
