"""What the whole comparison would cost on GPUs, by the formulas of `runs.estimate`. Nothing here is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfcorrect.paper.budget import completions_of_stage
from selfcorrect.paper.extra_evaluations import ExtraEvaluation
from selfcorrect.paper.plan import RunSpec
from selfcorrect.paper.time_estimate import evaluated_completions
from selfcorrect.runs.estimate import estimate
from selfcorrect.runs.model_shape import Cluster, Lengths, ModelShape
from selfcorrect.tasks.base import model_turns


@dataclass(frozen=True, slots=True)
class ComparisonCost:
    """The runs, the extra evaluations, the most completions in training and in evaluations, and the hours on the GPUs.

    Looks at development problems are evaluations, too. Without verifiers, loading, and the sweep of ``--tune``.
    """

    runs: int
    extra_evaluations: int
    trained: int
    evaluated: int
    hours: float

    @property
    def completions(self) -> int:
        return self.trained + self.evaluated


def comparison_cost(
    specs: Sequence[RunSpec],
    further: Sequence[ExtraEvaluation],
    shape: ModelShape,
    cluster: Cluster,
    lengths: Lengths,
) -> ComparisonCost:
    """Return the cost of runs that begin from nothing, one after the other, each on all GPUs.

    A run pays for its own stage and its last model's evaluation; what rows share is in the specs once.
    """
    trained = evaluated = 0
    seconds = 0.0
    for spec in specs:
        clock = estimate(spec.config, shape, cluster, lengths).clock
        for stage in (spec.config.stages[name] for name in spec.stages):
            trained += completions_of_stage(spec.config, stage)
            evaluated += clock.look_conversations(stage) * model_turns(spec.config, stage.turns)
            seconds += stage.steps * clock.step_s(stage) + clock.looks_s(stage)
        evaluated += evaluated_completions(spec.config)
        seconds += clock.final_s()
    for extra in further:
        clock = estimate(next(spec for spec in specs if spec.path == extra.run).config, shape, cluster, lengths).clock
        arguments = extra.arguments
        evaluated += extra.completions
        seconds += clock.conversations_s(arguments["limit"] * arguments.get("samples", 1), arguments["turns"])
    return ComparisonCost(len(specs), len(further), trained, evaluated, seconds / 3600)
