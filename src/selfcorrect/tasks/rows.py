"""User-defined tasks: problems as rows in memory, with the user's verifier."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

from selfcorrect.documents import is_unicode
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.script import GENERAL_INSTRUCTION, Script
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.splits import SHARES, normalise, split_of
from selfcorrect.types import Outcome, Problem, Split, Verdict

VerifierFunction = Callable[[str, str, Mapping[str, Any]], bool | Verdict]
"""A ``function(text, reference, row)`` of the model's whole text, the row's reference and the whole row."""

MakeProblem = Callable[[str, Mapping[str, Any]], Problem]
"""A function of a row's place and the row that returns its problem, or raises a ValueError that says what is wrong."""

MAX_PLACES = 3
"""The further places that one line names."""
MAX_SHOWN = 20
"""The largest number of malformed rows that one error lists."""
MAX_RESPONSES = 1000
"""The largest number of whole solutions that a task keeps as its ``responses``, from which `tasks check` tells their lengths."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a row's fields; ``None`` means that the rows have no such field."""

    prompt: str = "prompt"
    reference: str = "answer"
    id: str | None = None
    difficulty: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of one origin, each with its name in error messages ("problems.jsonl:3").

    ``commits`` has the commit of each of the hub's repositories that the rows are from, where it is known.
    """

    name: str
    rows: Sequence[tuple[str, Mapping[str, Any]]]
    commits: Mapping[str, str] = field(default_factory=dict)


class RowsTask:
    """A task made of rows and a verifier function.

    A row is a mapping with a prompt (text) and a reference (text or a number); other keys are kept for the verifier.
    ``rows`` is any iterable of them, including a `datasets.Dataset`. ``dev_rows`` and ``test_rows``, where given, are the
    whole split; the other splits share ``rows`` by the hash of the prompt (`splits.split_of`). ``rows=None`` with
    ``test_rows`` makes a task for evaluation only.

    The verifier gets the model's text, the reference and the row, and returns True, False or a `Verdict`. For True or
    False, the verdict's ``extracted`` is the whole text, stripped. A blank text is NO_ANSWER without a call. The verifier
    runs in worker processes: it may be a lambda or a notebook's function, but must not rely on state that changes.
    ``trusted=True`` runs it in this process, without a time limit.

    Raises:
        DataError: rows are malformed or repeated, or two splits share a problem; one message lists all of them.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]] | None,
        verifier: VerifierFunction,
        *,
        dev_rows: Iterable[Mapping[str, Any]] | None = None,
        test_rows: Iterable[Mapping[str, Any]] | None = None,
        fields: Fields | None = None,
        script: Script | None = None,
        name: str = "rows",
        trusted: bool = False,
    ) -> None:
        given = {"rows": rows, "dev_rows": dev_rows, "test_rows": test_rows}
        sources = {
            label: Source(label, [(f"{label}[{i}]", row) for i, row in enumerate(several)])
            for label, several in given.items()
            if several is not None
        }
        self._set_up(
            sources.get("rows"),
            sources.get("dev_rows"),
            sources.get("test_rows"),
            verifier=verifier,
            fields=fields or Fields(),
            script=script or Script(revise=GENERAL_INSTRUCTION),
            name=name,
            trusted=trusted,
        )

    def _set_up(
        self,
        main: Source | None,
        dev: Source | None,
        test: Source | None,
        *,
        verifier: VerifierFunction,
        fields: Fields,
        script: Script,
        name: str,
        trusted: bool,
        make: MakeProblem | None = None,
        shares: Mapping[Split, int] = SHARES,
        salt: int = 0,
        drop_repeated: bool | None = None,
        errors: Sequence[str] = (),
    ) -> None:
        """Read, check and share out the rows; ``errors`` are those that reading the files found.

        ``make`` turns a row into its problem, by default with ``fields``. ``shares`` and ``salt`` are those of `split_of`.
        ``drop_repeated`` is None if the task has no such option.
        """
        if not callable(verifier):
            raise ConfigError(f"verifier = {verifier!r} is not callable: give a function(text, reference, row).")
        if main is None and dev is None and test is None:
            raise ConfigError(f"task {name!r} has no rows: give rows, dev_rows or test_rows.")
        self.name, self.script, self.trusted_verifier = name, script, trusted
        self._verifier, self._shares, self._given = verifier, shares, frozenset[Split]()
        errors = list(errors)
        make = make or partial(_problem, fields=fields)
        read = {split: _read(source, make, errors) for split, source in _by_split(main, dev, test).items()}
        self.data_commits = {hub: commit for each in (main, dev, test) if each for hub, commit in each.commits.items()}
        self.dropped = _drop_repeated(read) if drop_repeated else {}
        _check_ids(read, errors)
        _check_overlap(read, errors, None if drop_repeated is None else "drop_repeated=true")
        refuse(name, errors, sum(len(source.rows) for source in (main, dev, test) if source))
        self._given = frozenset(s for s, source in ((Split.DEV, dev), (Split.TEST, test)) if source is not None)
        self._problems = _share_out(read, self._given, lambda problem: split_of(problem.prompt, shares, salt))
        self.version = f"2+{_digest(self._problems, _source_code(verifier))}"

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return all problems of a split, or the first ``limit``, in an order that is a function of ``seed``.

        A ``limit`` above the size of the split returns all of it.

        Raises:
            DataError: the split is empty.
        """
        problems = self._problems[split]
        if not problems:
            sizes = ", ".join(f"{len(self._problems[s])} {s}" for s in Split)
            raise DataError(
                f"task {self.name!r} has no {split} problems ({sizes}). A hash splits problems without a given split, "
                f"{'/'.join(str(self._shares[s]) for s in Split)}% to {'/'.join(Split)}: give more problems, or give the "
                f"{split} problems separately."
            )
        return sorted(problems, key=lambda p: blake2b(f"{seed}/{p.id}".encode(), digest_size=8).digest())[:limit]

    @property
    def sizes(self) -> dict[Split, int]:
        """Return how many problems each split has."""
        return {split: len(several) for split, several in self._problems.items()}

    def more_problems(self, split: Split) -> str:
        """Return what gives a split more problems, as an imperative."""
        return f"add rows of data to the {split} split" if split in self._given else "add rows of data"

    def verify(self, problem: Problem, text: str) -> Verdict:
        if not text.strip():
            return Verdict(Outcome.NO_ANSWER, detail="blank text")
        result: object = self._verifier(text, problem.reference, problem.data)
        if isinstance(result, Verdict):
            return result
        if not isinstance(result, bool):
            raise TypeError(f"the verifier returned {result!r:.100}; it must return True, False or a Verdict")
        return Verdict(Outcome.CORRECT if result else Outcome.INCORRECT, extracted=text.strip())

    def corrupt(self, problem: Problem) -> str:
        """Return `corrupt_text` of the reference; a tolerant verifier may accept it, because the task is unknown."""
        return corrupt_text(problem.reference)


def refuse(name: str, errors: Sequence[str], rows: int | None = None, *, what: str = "data of task") -> None:
    """Raise one `DataError` that lists all ``errors``, if there are any; errors with the same cause are one line.

    Args:
        name: of which ``what`` these are the errors.
        errors: each is ``place: cause``.
        rows: the number of rows, so that the message can say that all of them have a cause in common.
    """
    if errors:
        lines = _by_cause(errors, rows)
        more = f"\n  ... and {len(lines) - MAX_SHOWN} more" if len(lines) > MAX_SHOWN else ""
        listed = "".join(f"\n  {line}" for line in lines[:MAX_SHOWN])
        raise DataError(f"the {what} {name!r} have {len(errors)} error(s), so none of it was used:{listed}{more}")


def _by_cause(errors: Sequence[str], rows: int | None = None) -> list[str]:
    """Return a line for each cause, in the order of the first place of each.

    >>> _by_cause(["a:1: empty", "a:2: too long", "a:3: empty"])
    ['a:1: empty (also a:3)', 'a:2: too long']
    >>> _by_cause(["a:1: no field 'x'", "a:2: no field 'x'"], rows=2)
    ["a:1: no field 'x' (all 2 rows)"]
    """
    places: dict[str, list[str]] = {}
    for error in errors:
        place, _, cause = error.partition(": ")
        places.setdefault(cause, []).append(place)
    return [f"{first}: {cause}{_also(others, rows)}" for cause, (first, *others) in places.items()]


def _also(places: Sequence[str], rows: int | None) -> str:
    if not places:
        return ""
    if len(places) + 1 == rows:
        return f" (all {rows:,} rows)"
    more = f" and {len(places) - MAX_PLACES:,} more" if len(places) > MAX_PLACES else ""
    return f" (also {', '.join(places[:MAX_PLACES])}{more})"


# --- reading ----------------------------------------------------------------------------------------


def _by_split(main: Source | None, dev: Source | None, test: Source | None) -> dict[Split, Source | None]:
    return {Split.TRAIN: main, Split.DEV: dev, Split.TEST: test}


def _read(source: Source | None, make: MakeProblem, errors: list[str]) -> list[tuple[str, Problem]]:
    if source is None:
        return []
    if not source.rows and not errors:
        errors.append(f"{source.name}: there is no row; at least one problem is needed")
    read = []
    for where, row in source.rows:
        try:
            read.append((where, make(where, row)))
        except ValueError as error:
            errors.append(f"{where}: {error}")
    return read


def _problem(where: str, row: object, fields: Fields) -> Problem:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object (a mapping), not {type(row).__name__}")
    prompt = text_field(row, fields.prompt, "prompt_field")
    if not prompt.strip():
        raise ValueError(f"field {fields.prompt!r} is empty")
    reference = text_field(row, fields.reference, "reference_field", numbers=True)
    name, difficulty = labels(where, row, fields)
    return Problem(name, prompt, reference, difficulty, dict(row))


def labels(where: str, row: Mapping[str, Any], fields: Fields) -> tuple[str, str | None]:
    """Return a row's id and difficulty."""
    name = text_field(row, fields.id, "id_field", numbers=True) if fields.id else where
    difficulty = text_field(row, fields.difficulty, "difficulty_field", numbers=True) if fields.difficulty else None
    return name, difficulty


def _separator(row: Mapping[str, Any]) -> str | None:
    """Return what to do if the only field's name shows that a table is separated by something else than commas."""
    [name, *others] = [*row, ""]
    found = next((each for each in (";", "\t", "|") if each in name), None)
    if found is None or any(others):
        return None
    return f"the table is separated by {found!r}: save it with commas"


def text_field(row: Mapping[str, Any], key: str, option: str, *, numbers: bool = False) -> str:
    """Return a field's text, or its number as text if ``numbers`` may stand there; ``option`` names the field.

    Raises:
        ValueError: there is no such field, or it holds something else.
    """
    if key not in row:
        raise ValueError(
            f"no field {key!r} among {', '.join(map(repr, row)) or 'none'}; {_separator(row) or f'set {option} to the right one'}"
        )
    value = row[key]
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"field {key!r} = {value} is no number, as tables write what is missing")
        return json.dumps(value)
    if not isinstance(value, str):
        allowed = "text or a number" if numbers else "text"
        raise ValueError(f"field {key!r} = {value!r:.60} is {type(value).__name__}, not {allowed}")
    if not is_unicode(value):
        raise ValueError(f"field {key!r} = {value!r:.60} is not Unicode text (a lone surrogate): no model can read it")
    return value


def _check_ids(read: Mapping[Split, list[tuple[str, Problem]]], errors: list[str]) -> None:
    first: dict[str, str] = {}
    for where, problem in (pair for several in read.values() for pair in several):
        if problem.id in first:
            errors.append(f"{where}: id {problem.id!r} is also the id of {first[problem.id]}; ids must differ")
        first.setdefault(problem.id, where)


def _check_overlap(read: Mapping[Split, list[tuple[str, Problem]]], errors: list[str], option: str | None) -> None:
    """Report repeated prompts once, and between splits given separately, once a pair, prompts equal after `normalise`.

    ``option`` is the one of the task that keeps the first of equal problems, if it has one.
    """
    keep = f", or set {option} to keep the first of them" if option else ""
    twins: list[tuple[str, str]] = []
    exact: dict[str, str] = {}
    normal: dict[str, tuple[Split, str]] = {}
    shared: dict[tuple[Split, Split], list[tuple[str, str]]] = {}
    for split, several in read.items():
        for where, problem in several:
            twin = exact.setdefault(problem.prompt.strip(), where)
            other, near = normal.setdefault(normalise(problem.prompt), (split, where))
            if other is not split:
                shared.setdefault((split, other), []).append((where, near))
            elif twin != where:
                twins.append((where, twin))
    if twins:
        where, twin = twins[0]
        others = (
            f"{len(twins) - 1:,} more occur before ({_listed(twins[1:])}); remove them"
            if twins[1:]
            else "remove one of them"
        )
        errors.append(f"{where}: the same problem as {twin}; {others}{keep}")
    for (split, other), pairs in shared.items():
        where, near = pairs[0]
        count = f"; {len(pairs)} of {split} are in {other}, remove them from one" if len(pairs) > 1 else ""
        errors.append(
            f"{where}: the same problem as {near}, but splits must be disjoint{count or '; remove one of them'}{keep}"
        )


def _listed(twins: Sequence[tuple[str, str]]) -> str:
    """Return some repeated problems, each with the place that it repeats."""
    shown = ", ".join(f"{where} = {twin}" for where, twin in twins[:MAX_PLACES])
    return f"{shown}, ..." if len(twins) > MAX_PLACES else shown


def _drop_repeated(read: dict[Split, list[tuple[str, Problem]]]) -> dict[str, int]:
    """Keep the first of equal problems, those of the test split before those of development and training.

    Returns:
        how many were left out of the rows given for each split, by its name; splits that lost none are missing.
    """
    seen: set[str] = set()
    dropped: dict[str, int] = {}
    for split in reversed(Split):
        kept = []
        for where, problem in read[split]:
            text = normalise(problem.prompt)
            if text not in seen:
                seen.add(text)
                kept.append((where, problem))
        if len(kept) < len(read[split]):
            dropped[split.value] = len(read[split]) - len(kept)
        read[split] = kept
    return dropped


def dropped_text(dropped: Mapping[str, int]) -> str:
    """Return a sentence on what `drop_repeated` left out.

    >>> dropped_text({"train": 1200, "dev": 3})
    'drop_repeated left out 1,203 problems that occur before (1,200 of train, 3 of dev)'
    """
    each = ", ".join(f"{count:,} of {split}" for split, count in dropped.items())
    return f"drop_repeated left out {sum(dropped.values()):,} problems that occur before ({each})"


def _share_out(
    read: Mapping[Split, list[tuple[str, Problem]]], given: Collection[Split], draw: Callable[[Problem], Split]
) -> dict[Split, list[Problem]]:
    """Return the given splits unchanged and the others as drawn from the rest; leftovers go to the training split."""
    parts = {split: [p for _, p in read[split]] for split in Split}
    parts[Split.TRAIN] = []
    for _, problem in read[Split.TRAIN]:
        split = draw(problem)
        parts[Split.TRAIN if split in given else split].append(problem)
    return parts


# --- version ----------------------------------------------------------------------------------------


def _source_code(verifier: VerifierFunction) -> str:
    """Return the verifier's name and, where Python can find it, the source of the function, not of what it calls."""
    import inspect

    function = getattr(verifier, "function", verifier)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # made on the fly, or not a plain function
        source = ""
    module = getattr(function, "digested_module", getattr(function, "__module__", ""))
    return f"{module}:{getattr(function, '__qualname__', type(function).__name__)}\n{source}"


def _digest(problems: Mapping[Split, list[Problem]], code: str) -> str:
    digest = blake2b(code.encode(), digest_size=6)
    for split, several in problems.items():
        for p in several:
            row = [split, p.id, p.prompt, p.reference, p.difficulty, dict(p.data)]
            digest.update(json.dumps(row, sort_keys=True, default=lambda value: type(value).__name__).encode() + b"\n")
    return digest.hexdigest()
