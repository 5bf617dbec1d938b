"""The task ``dataset``: any data set, with a verifier by name (docs/tasks.md)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from selfcorrect.config.settings import MAX_SEED
from selfcorrect.errors import ConfigError
from selfcorrect.script import Instructions, Script
from selfcorrect.tasks.dataset.answer_verifier import AnswerVerifier
from selfcorrect.tasks.dataset.hidden_options import advice, hidden_options
from selfcorrect.tasks.dataset.patterns import Bounded, LastMatch, compiled_pattern
from selfcorrect.tasks.dataset.template import Template
from selfcorrect.tasks.dataset.verifiers import Exact, Function, make_verifier
from selfcorrect.tasks.rows import MAX_RESPONSES, Fields, RowsTask, Source, dropped_text, labels, text_field
from selfcorrect.tasks.sources import Part, read_parts
from selfcorrect.tasks.splits import SHARES
from selfcorrect.types import Problem, Split, Verdict

SPLIT_NAMES = {
    "train": Split.TRAIN,
    "dev": Split.DEV,
    "val": Split.DEV,
    "valid": Split.DEV,
    "validation": Split.DEV,
    "test": Split.TEST,
}
"""The names under which data sets publish the three splits."""

log = logging.getLogger("selfcorrect")

Places = str | Path | list[str]
Judge = Callable[[Problem, str], Verdict]


class DatasetTask(RowsTask):
    """A data set from files, directories or the hub, with a verifier by name.

    Args:
        path: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, also compressed (.gz, .bz2, .xz, .zst), a directory of a
            dataset, a hub id (``OWNER/NAME``, ``OWNER/NAME/CONFIG``, ``OWNER/NAME:SPLIT``, ``...@REVISION``), or a list of
            them. Splits named train, validation and test become this task's; what has no such name is shared by the hash
            of the problem.
        verifier: ``exact``, ``number``, ``math``, ``choice``, ``regex``, ``code``, or ``module:function``.
        dev_path, test_path: the whole development or test split. ``test_path`` alone makes a task for evaluation.
        shares: the percentages of train, dev and test among the problems that are shared by hash.
        split_seed: another seed draws other splits.
        template: the problem's text, with columns in braces; ``{options}`` lists those of ``choice``. By default it is
            ``prompt_field``, and the options below it.
        prompt_field, reference_field, id_field, difficulty_field: the names of columns.
        reference_pattern: a regular expression whose last match in ``reference_field``, or its group, is the reference.
        drop_repeated: keep the first of equal problems (test before dev before train) instead of rejecting the data.
        first, revise, system, turns: the script; see `Script`. The defaults depend on the verifier.
        name: the task's name; the default is that of the first file or dataset.
        options: those of the verifier; see `tasks.dataset.verifiers.VERIFIERS`.

    Raises:
        ConfigError: an option is invalid, or a package is missing.
        DataError: the rows cannot be read, are malformed or repeated; one message lists at most `rows.MAX_SHOWN` of them.
    """

    def __init__(
        self,
        path: Places | None = None,
        verifier: str = "",
        *,
        dev_path: Places | None = None,
        test_path: Places | None = None,
        shares: list[int] | None = None,
        split_seed: int = 0,
        template: str | None = None,
        prompt_field: str = "prompt",
        reference_field: str = "answer",
        id_field: str | None = None,
        difficulty_field: str | None = None,
        reference_pattern: str | None = None,
        drop_repeated: bool = False,
        first: str | None = None,
        revise: Instructions | None = None,
        system: str | None = None,
        turns: int = 2,
        name: str | None = None,
        **options: Any,
    ) -> None:
        places = {split: _listed(each) for split, each in zip(Split, (path, dev_path, test_path), strict=True)}
        if not any(places.values()):
            raise ConfigError("task 'dataset' has no data: set its option path (or test_path, to evaluate).")
        kind = make_verifier(verifier, options, [*signature(DatasetTask).parameters])
        percent = _shares(shares)
        if not 0 <= split_seed <= MAX_SEED:
            raise ConfigError(f"split_seed = {split_seed}: give a number from 0 to {MAX_SEED}.")
        if template is None:
            template = _braced(prompt_field) + ("\n\n{options}" if getattr(kind, "options_field", None) else "")
        if reference_pattern is not None:
            compiled_pattern(reference_pattern, "reference_pattern")
        fields = Fields(prompt_field, reference_field, id_field, difficulty_field)
        filled = Template(template, reference_field)
        errors: list[str] = []
        remarks: dict[str, None] = {}
        sources = _sources(places, errors)
        self._kind = kind
        self.responses: list[str] = []
        with ExitStack() as processes:
            search, judge = None, kind.judge
            if reference_pattern is not None:
                bounded = Bounded(LastMatch(reference_pattern), "reference_pattern", reference_pattern)
                search = processes.enter_context(bounded)
            if kind.bounded is not None:
                judge = processes.enter_context(Bounded(kind.judge, kind.bounded, getattr(kind, kind.bounded)))
            self._set_up(
                *(sources[split] for split in Split),
                verifier=kind.function if isinstance(kind, Function) else kind,
                fields=fields,
                script=_script(kind, first, revise, system, turns),
                name=name or next(source.name for source in sources.values() if source).partition(".")[0],
                trusted=kind.trusted,
                make=partial(
                    _problem,
                    kind=kind,
                    template=filled,
                    fields=fields,
                    search=search,
                    judge=judge,
                    remarks=remarks,
                    responses=self.responses,
                ),
                shares=percent,
                salt=split_seed,
                drop_repeated=drop_repeated,
                errors=errors,
            )
        if self.dropped:
            log.info("task %r: %s", self.name, dropped_text(self.dropped))
        problems = [problem for several in self._problems.values() for problem in several]
        kind.bind(problems)
        self.notes = (*remarks, *kind.remarks(problems))
        for note in self.notes:
            log.warning("task %r: %s", self.name, note)
        self.version = f"{kind.version}+{self.version}"
        for member in ("prepare", "close"):
            if hasattr(kind, member):
                setattr(self, member, getattr(kind, member))

    @classmethod
    def script_of_options(
        cls,
        *,
        verifier: str = "",
        first: str | None = None,
        revise: Instructions | None = None,
        system: str | None = None,
        turns: int = 2,
        **others: Any,
    ) -> Script:
        """Return the script of a task with these options."""
        own = signature(DatasetTask).parameters
        kind = make_verifier(verifier, {name: value for name, value in others.items() if name not in own}, [*own])
        return _script(kind, first, revise, system, turns)

    def more_problems(self, split: Split) -> str:
        """Return what gives a split more problems: rows, or a larger share of them where a hash shares them out."""
        own = super().more_problems(split)
        return (
            own if split in self._given else f"{own}, or give {split} a larger share of them (the task's option shares)"
        )

    def answer(self, problem: Problem) -> str:
        """Return a correct answer as a model may write it."""
        return self._kind.written(problem)

    def corrupt(self, problem: Problem) -> str:
        return self._kind.corrupted(problem)


def _script(
    kind: AnswerVerifier, first: str | None, revise: Instructions | None, system: str | None, turns: int
) -> Script:
    return Script(first or kind.first, revise if revise is not None else kind.revise, system, turns)


# --- from places to splits --------------------------------------------------------------------------


def _listed(places: Places | None) -> list[str]:
    return [] if places is None else [str(place) for place in (places if isinstance(places, list) else [places])]


def _shares(shares: Sequence[int] | None) -> Mapping[Split, int]:
    if shares is None:
        return SHARES
    if len(shares) != len(Split) or any(share < 0 for share in shares) or sum(shares) != 100:
        raise ConfigError(f"shares = {shares}: give the percentages of train, dev and test, which sum to 100.")
    return dict(zip(Split, shares, strict=True))


def _braced(column: str) -> str:
    return "{" + column + "}"


def _sources(places: Mapping[Split, Sequence[str]], errors: list[str]) -> dict[Split, Source | None]:
    """Return the rows of each split that has some of its own; those of `Split.TRAIN` are shared out where others have none."""
    everything = [place for several in places.values() for place in several]
    short = len({Path(place).name for place in everything}) == len(everything)
    found: dict[Split, list[Source]] = {split: [] for split in Split}
    for split, several in places.items():
        for place in several:
            parts = read_parts(place, errors, extra="data", label=None if short else place)
            if split is Split.TRAIN:
                for own, source in _by_name(place, parts).items():
                    if own is not split and places[own]:
                        raise ConfigError(f"{place} has its own {own} split: name one split of it, as {place}:train.")
                    found[own].append(source)
            else:
                found[split].append(_only(place, parts, split))
    return {split: _joined(several) for split, several in found.items()}


def _by_name(place: str, parts: Sequence[Part]) -> dict[Split, Source]:
    """Return a place's parts by the split that their names mean; a single part of another name is for `Split.TRAIN`."""
    if len(parts) == 1:
        return {SPLIT_NAMES.get(parts[0].split.casefold(), Split.TRAIN): parts[0].source}
    named = [SPLIT_NAMES.get(part.split.casefold()) for part in parts]
    if None in named or len(set(named)) < len(named):
        raise _ambiguous(place, parts)
    return {split: part.source for split, part in zip(named, parts, strict=True) if split is not None}


def _only(place: str, parts: Sequence[Part], split: Split) -> Source:
    """Return the part for ``split``: the only one, or the one of its name."""
    fitting = [part for part in parts if len(parts) == 1 or SPLIT_NAMES.get(part.split.casefold()) is split]
    if len(fitting) != 1:
        raise _ambiguous(place, parts)
    return fitting[0].source


def _ambiguous(place: str, parts: Sequence[Part]) -> ConfigError:
    names = [part.split for part in parts]
    return ConfigError(
        f"{place} has the splits {', '.join(names)}: name those to use, as path = '{place}:{names[0]}', "
        f"test_path = '{place}:{names[-1]}'."
    )


def _joined(several: Sequence[Source]) -> Source | None:
    if not several:
        return None
    commits = {hub: commit for source in several for hub, commit in source.commits.items()}
    return Source(several[0].name, [pair for source in several for pair in source.rows], commits)


# --- from rows to problems --------------------------------------------------------------------------


def _problem(
    where: str,
    row: Mapping[str, Any],
    *,
    kind: AnswerVerifier,
    template: Template,
    fields: Fields,
    search: Judge | None,
    judge: Judge,
    remarks: dict[str, None],
    responses: list[str],
) -> Problem:
    """Return a row's problem.

    ``search`` finds the reference within its column; ``judge`` is `AnswerVerifier.judge`, perhaps in another process.
    ``remarks`` gets, once, what is odd about rows that are valid; ``responses`` the first references with more than the answer.

    Raises:
        ValueError: a column is missing or empty, or the verifier rejects the reference.
        ConfigError: a pattern takes too long for the row.
    """
    prompt = template.filled({**row, **kind.shown(row)})
    if not prompt.strip():
        raise ValueError("the problem is empty")
    whole = given = text_field(row, fields.reference, "reference_field", numbers=True)
    if search is not None:
        found = search(Problem(where, prompt, given), given).extracted
        if found is None:
            raise ValueError(f"reference_pattern matches nothing in {given[-60:]!r}")
        given = found
    if not given.strip():
        raise ValueError(f"the reference in column {fields.reference!r} is empty")
    reference, data = kind.checked(given.strip(), prompt, row)
    if isinstance(kind, Exact) and re.fullmatch("[A-J]", reference) and (names := hidden_options(row, prompt)):
        remarks[advice(names)] = None
    name, difficulty = labels(where, row, fields)
    problem = Problem(name, prompt, reference, difficulty, data)
    if kind.checks_references:
        verdict = judge(problem, kind.written(problem))
        if not verdict.correct:
            read = f" (it reads {verdict.extracted!r:.60})" if verdict.extracted is not None else f" ({verdict.detail})"
            raise ValueError(f"the reference {reference!r:.60} is rejected by its own verifier{read}")
    if len(responses) < MAX_RESPONSES and len(whole) > len(kind.written(problem)):
        responses.append(whole)
    return problem
