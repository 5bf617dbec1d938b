"""What an evaluation's episodes amount to: its metrics, controls, and what its delta is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from selfcorrect.evaluation.conclusion import Conclusion, Reads, conclude, evidence_of
from selfcorrect.evaluation.decomposition import (
    BLIND_ACCURACY,
    Decomposition,
    Samples,
    changed_answers,
    detection,
    of_samples,
    parts_of_delta,
)
from selfcorrect.evaluation.flags import correct_at
from selfcorrect.evaluation.metrics import Results, summarize
from selfcorrect.evaluation.same_answers import same_answers
from selfcorrect.evaluation.supply import NAME as SUPPLY
from selfcorrect.evaluation.supply import Supply
from selfcorrect.evaluation.tokens_per_problem import TokensPerProblem, tokens_per_problem
from selfcorrect.evaluation.truncated_drafts import NAME as TRUNCATED_DRAFTS
from selfcorrect.evaluation.truncated_drafts import TruncatedDrafts, truncated_drafts
from selfcorrect.evaluation.verification import Verification, verifications
from selfcorrect.storage.episode_log import StoredEpisode, stored_rules
from selfcorrect.types import TOKENS, Part, StopReason

BLIND = {Part.SWAP: "draft_swap", Part.EMPTY: "empty_draft", Part.SHUFFLED: "shuffled_draft"}
"""The blind drafts, and the names of their controls."""

PARTS = (Part.ATTEMPTS, Part.SAMPLED, Part.RESAMPLE, *BLIND)
"""The possible parts of an evaluation, each in its own file."""

COMPARED = {
    **{control: ("acc_t2", accuracy) for control, accuracy in BLIND_ACCURACY.items()},
    "independent_resample": ("acc_t1", "acc_resampled"),
}
"""The two accuracies that each control compares, by their names in a summary."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Conversations in which a server did not answer a request; their attempts from there on have no answer."""

    episodes: int
    of: int
    problem_id: str
    reason: str

    @classmethod
    def among(cls, episodes: Iterable[StoredEpisode]) -> Failures | None:
        """Count the failures, and describe the first; None if there are none."""
        everything = list(episodes)
        failed = [episode for episode in everything if episode.failure is not None]
        if not failed:
            return None
        return cls(len(failed), len(everything), failed[0].problem_id, failed[0].failure or "")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of the main attempts, of samples at the training temperature, and of the controls.

    ``by_rule`` holds the main results under each answer-extraction rule, if the task has several. ``failures`` are the
    conversations of all parts in which a server did not answer a request, ``other_models`` the names under which it
    answered in place of the requested one. ``decomposition`` says what delta is made of; one attempt has none. ``drafts`` is the
    digest of a shared pool (`draft_pool`), if the first attempts are from one and not the model's own. ``verifications`` says how
    well the model judged its attempts, where the script asks it to. ``truncated_drafts`` says what first attempts that the token
    limit cut off contribute, of the main attempts and of the samples, if there are any. ``supply`` has all problems of a
    task that cannot make more. ``tokens`` and ``sampled_tokens`` are the tokens per problem of the main attempts and of the
    samples, where they are known.
    """

    results: Results
    sampled: Results | None = None
    controls: Mapping[str, Results] = field(default_factory=dict)
    episodes: Sequence[StoredEpisode] = ()
    by_rule: Mapping[str, Results] = field(default_factory=dict)
    context_mode: str = TOKENS
    failures: Failures | None = None
    other_models: Sequence[str] = ()
    decomposition: Decomposition | None = None
    drafts: str | None = None
    verifications: Sequence[Verification] = ()
    truncated_drafts: TruncatedDrafts | None = None
    sampled_truncated_drafts: TruncatedDrafts | None = None
    supply: Supply | None = None
    tokens: TokensPerProblem | None = None
    sampled_tokens: TokensPerProblem | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the ``R`` of a summary: the main metrics with ``sampled``, ``controls``, ``decomposition`` and ``by_rule``.

        ``failed_requests``, ``other_models``, ``same_answers``, ``supply`` and ``truncated_drafts`` are there only if there were
        any, ``tokens_per_problem`` only if all lengths are known.
        """
        found = self.results.to_json()
        found["context_mode"] = self.context_mode
        if self.failures is not None:
            found["failed_requests"] = asdict(self.failures)
        if self.other_models:
            found["other_models"] = list(self.other_models)
        if self.drafts is not None:
            found["drafts"] = self.drafts
        found["lengths"] = turn_lengths(self.episodes)
        if self.tokens is not None:
            found |= self.tokens.to_json()
        if same := same_answers(self.episodes):
            found["same_answers"] = same
        if self.supply is not None:
            found[SUPPLY] = self.supply.to_json()
        if self.truncated_drafts is not None:
            found[TRUNCATED_DRAFTS] = self.truncated_drafts.to_json()
        if self.verifications:
            found["verifications"] = [turn.to_json() for turn in self.verifications]
        if self.by_rule:
            found["by_rule"] = {name: results.to_json() for name, results in self.by_rule.items()}
        if self.sampled is not None:
            found["sampled"] = _samples_json(self.sampled, self.sampled_tokens, self.sampled_truncated_drafts)
        if self.controls:
            found["controls"] = {name: control_json(name, results) for name, results in self.controls.items()}
        if self.decomposition is not None:
            found["decomposition"] = self.decomposition.to_json()
            found["decomposition"] |= _conclusion_json(found)
        return found

    @property
    def conclusion(self) -> Conclusion | None:
        """Return whether the model reads its draft and corrects itself; None without the controls."""
        return conclusion_of(self.to_json())

    def to_pandas(self) -> Any:
        """Return the main metrics as one row."""
        return self.results.to_pandas()


def conclusion_of(results: Mapping[str, Any]) -> Conclusion | None:
    """Return what the results of a summary, of any version, conclude; None without a blind draft."""
    found = evidence_of(results)
    return None if found is None else conclude(found)


def _conclusion_json(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conclusion, and ``reads`` as earlier versions have it where it can be told."""
    found = conclusion_of(results)
    if found is None:
        return {}
    told = {} if found.reads is Reads.UNKNOWN else {"reads": found.reads is Reads.YES}
    return {**told, "conclusion": found.to_json()}


def _samples_json(
    results: Results, tokens: TokensPerProblem | None, truncated: TruncatedDrafts | None
) -> dict[str, Any]:
    """Return the results of the samples with their tokens per problem and what truncated first attempts contribute."""
    found = results.to_json()
    if tokens is not None:
        found |= tokens.to_json()
    if truncated is not None:
        found[TRUNCATED_DRAFTS] = truncated.to_json()
    return found


def turn_lengths(episodes: Sequence[StoredEpisode]) -> list[dict[str, float]]:
    """Return the mean, median, 90% quantile and maximum of each attempt's sampled tokens over the episodes.

    A skipped attempt counts with 0 tokens; failed requests have no length. The list is empty if a server did not report the
    length of some turn.
    """
    found = []
    for attempts in zip(*(episode.attempts for episode in episodes), strict=True):
        lengths = [turn.length for turn in attempts if turn.stop is not StopReason.FAILED]
        if None in lengths or not lengths:
            return []
        counts = np.array(lengths)
        quantiles = {"median": float(np.median(counts)), "p90": float(np.quantile(counts, 0.9))}
        found.append({"mean": float(counts.mean()), **quantiles, "max": int(counts.max())})
    return found


def control_json(name: str, results: Results) -> dict[str, Any]:
    """Return a control under its own names: the accuracies it compares, and the difference with its interval."""
    found = results.to_json()
    before, after = COMPARED[name]
    return {
        "n": found["n"],
        before: found["acc_t1"],
        after: found["acc_t2"],
        f"{after}_ci95": found["acc_t2_ci95"],
        "difference": found["delta"],
        "difference_ci95": found["delta_ci95"],
        "i_to_c": found["i_to_c"],
        "c_to_i": found["c_to_i"],
    }


def evaluation_of(
    parts: Mapping[Part, Sequence[StoredEpisode]],
    *,
    seed: int,
    context_mode: str = TOKENS,
    drafts: str | None = None,
    supply: Supply | None = None,
) -> Evaluation:
    """Return the evaluation of stored episodes by part: ``attempts`` and, if they were run, the others of `PARTS`."""
    main, sampled, controls = parts[Part.ATTEMPTS], None, {}
    if Part.SAMPLED in parts:
        sampled = _summary(parts[Part.SAMPLED], seed)
        if Part.RESAMPLE in parts:
            controls["independent_resample"] = _paired(parts[Part.SAMPLED], 0, parts[Part.RESAMPLE], 0, seed)
    blind = {name: parts[part] for part, name in BLIND.items() if part in parts}
    controls |= {name: _paired(main, 1, episodes, 1, seed) for name, episodes in blind.items()}
    by_rule = {name: _summary(main, seed, name) for name in stored_rules(main)}
    everything = list(chain.from_iterable(parts.values()))
    failures, names = Failures.among(everything), _other_models(everything)
    made_of = _decomposition(main, blind, parts.get(Part.SAMPLED, ()), seed)
    results, judged = _summary(main, seed), verifications(main, seed=seed)
    return Evaluation(
        results,
        sampled,
        controls,
        main,
        by_rule=by_rule,
        context_mode=context_mode,
        failures=failures,
        other_models=names,
        decomposition=made_of,
        drafts=drafts,
        verifications=judged,
        truncated_drafts=truncated_drafts(main, blind, seed=seed),
        sampled_truncated_drafts=truncated_drafts(parts.get(Part.SAMPLED, ()), {}, seed=seed),
        supply=supply,
        tokens=tokens_per_problem(main),
        sampled_tokens=tokens_per_problem(parts.get(Part.SAMPLED, ())),
    )


def _other_models(episodes: Iterable[StoredEpisode]) -> list[str]:
    """Return the names under which a server answered in place of the requested one."""
    names = {turn.other_model for episode in episodes for turn in episode.turns}
    return sorted(name for name in names if name is not None)


def _decomposition(
    main: Sequence[StoredEpisode],
    blind: Mapping[str, Sequence[StoredEpisode]],
    sampled: Sequence[StoredEpisode],
    seed: int,
) -> Decomposition | None:
    """Return what delta is made of; None for episodes of one attempt."""
    if any(len(episode.attempts) < 2 for episode in main):
        return None
    ids = [episode.problem_id for episode in main]
    first, second = correct_at(main, 0), correct_at(main, 1)
    changed = changed_answers([(e.attempts[0].graded(), e.attempts[1].graded()) for e in main])
    return Decomposition(
        detection(ids, first, second, changed, seed=seed),
        {
            name: parts_of_delta(ids, first, second, correct_at(episodes, 1), seed=seed)
            for name, episodes in blind.items()
        },
        _samples(main, seed) or _samples(sampled, seed),
    )


def _samples(episodes: Sequence[StoredEpisode], seed: int) -> Samples | None:
    if not episodes:
        return None
    ids = [episode.problem_id for episode in episodes]
    return of_samples(ids, correct_at(episodes, 0), correct_at(episodes, 1), seed=seed)


def _summary(episodes: Sequence[StoredEpisode], seed: int, rule: str | None = None) -> Results:
    ids = [episode.problem_id for episode in episodes]
    return summarize(ids, [episode.graded(rule) for episode in episodes], seed=seed)


def _paired(
    one: Sequence[StoredEpisode], turn: int, other: Sequence[StoredEpisode], other_turn: int, seed: int
) -> Results:
    """Summarize two attempts of different conversations at the same problem as if they were t1 and t2."""
    pairs = [(a.attempts[turn].graded(), b.attempts[other_turn].graded()) for a, b in zip(one, other, strict=True)]
    return summarize([episode.problem_id for episode in one], pairs, seed=seed)
