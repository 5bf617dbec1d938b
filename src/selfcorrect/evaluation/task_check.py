"""Try a task before anything is trained on it: its splits, its prompts, and its verifier on known answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from statistics import median_low
from textwrap import wrap
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.evaluation.answer_room import AnswerRoom, answer_room
from selfcorrect.evaluation.supply import more_of
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.base import Task, origin_of
from selfcorrect.tasks.rows import dropped_text
from selfcorrect.tasks.splits import normalise
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Outcome, Problem, Split, Verdict

WIDTH = 80
MAX_LINES = 24
"""The largest number of lines of one problem that are printed."""
FEW = 100
"""Problems below which a note says how little a split shows: the interval of an accuracy is then wider than +-10 points."""
MEASURES = {
    Split.DEV: ("development", "they decide which checkpoint a run keeps"),
    Split.TEST: ("test", "they decide what an evaluation finds"),
}
"""The names of the splits that measure something, and what their problems decide."""
MAX_FAILURES = 5
"""The largest number of failures that are printed of one check."""


@dataclass(frozen=True, slots=True)
class ShownProblem:
    """A problem as the model sees it."""

    id: str
    split: str
    text: str
    reference: str


@dataclass(frozen=True, slots=True)
class Lengths:
    """The shortest, the median and the longest of some texts."""

    what: str
    shortest: int
    median: int
    longest: int


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: what should hold, whether it does, and every case in which it does not."""

    claim: str
    passed: bool
    detail: str
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """What trying a task found. ``splits`` holds the number of drawn problems, or why there is none.

    ``notes`` are the task's own remarks about its problems (its attribute ``notes``, where it has any).
    ``sizes`` are those of the splits of a task that knows them, which may be more than were drawn.
    ``origin`` is `tasks.base.origin_of` the task. ``room`` is what an answer needs.
    """

    task: str
    version: str
    splits: Mapping[str, int | str]
    origin: Mapping[str, Any]
    later: tuple[str, ...]
    shown: tuple[ShownProblem, ...]
    unit: str
    lengths: tuple[Lengths, ...]
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    room: AnswerRoom = field(default_factory=lambda: AnswerRoom(None, ()))

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def check_task(
    task: Task,
    script: Script,
    *,
    seed: int = 0,
    limit: int = 100,
    show: int = 10,
    time_limit_s: float = 5.0,
    tokenizer: Any = None,
    template_options: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
) -> TaskCheck:
    """Return what trying a task on the first ``limit`` problems of each split finds.

    A correct answer is the task's ``answer(problem)``, or its reference; an incorrect one is ``corrupt(problem)``.
    With a ``tokenizer``, prompts are rendered by its chat template and lengths are tokens; without, they are characters.
    ``max_tokens`` is the configured limit of a turn, if there is one.
    """
    sizes = {split.value: size for split, size in getattr(task, "sizes", {}).items()}
    drawn, splits = _drawn(task, seed, limit, show)
    problems = [problem for several in drawn.values() for problem in several]
    chat = None if tokenizer is None else ChatFormat(tokenizer, script, template_options)
    answers = [correct_answer(task, problem) for problem in problems]
    solutions = _solutions(task, problems)
    length = None if chat is None else lambda text: len(chat.ids(text))
    return TaskCheck(
        task.name,
        task.version,
        splits,
        origin_of(task),
        tuple(turn.text for turn in script.later) if script.turns > 1 else (),
        _shown(drawn, script, chat, show),
        "characters" if chat is None else "tokens",
        _lengths(problems, answers, solutions, script, chat),
        (
            _has_problems(problems),
            *_verifier_checks(task, problems, answers, time_limit_s),
            _no_overlap(drawn),
            _no_repetition(drawn),
        ),
        (*getattr(task, "notes", ()), *_few(task, sizes)),
        sizes,
        answer_room(script, solutions, answers, length, max_tokens),
    )


def _drawn(task: Task, seed: int, limit: int, few: int) -> tuple[dict[Split, Sequence[Problem]], dict[str, int | str]]:
    """Return the problems of each split; where a generator has less than ``limit``, only ``few``."""
    drawn: dict[Split, Sequence[Problem]] = {}
    splits: dict[str, int | str] = {}
    for split in Split:
        for count in dict.fromkeys((limit, min(few, limit))):
            try:
                drawn[split] = task.problems(split, seed=seed, limit=count)
                splits[split.value] = len(drawn[split])
                break
            except DataError as error:
                splits[split.value] = str(error).partition(". ")[0]
    return drawn, splits


def _few(task: Task, sizes: Mapping[str, int]) -> list[str]:
    """Return a note for each split that measures something and is too small to show more than large differences."""
    return [
        f"{n} {name} problems are few: {what}, and the 95% interval of an accuracy near 50% is about +-{_half_width(n):.0f} "
        f"points. For more, {more_of(task, split)}"
        for split, (name, what) in MEASURES.items()
        if 0 < (n := sizes.get(split.value, 0)) < FEW
    ]


def _half_width(n: int) -> float:
    """Return half of the 95% interval of an accuracy of 50% at ``n`` problems, in points; no other accuracy has a wider one."""
    return min(50.0, 100 * 1.96 * sqrt(0.25 / n))


def correct_answer(task: Task, problem: Problem) -> str:
    """Return an answer that the task itself calls correct: its ``answer(problem)``, or the reference."""
    written: Callable[[Problem], str] | None = getattr(task, "answer", None)
    return problem.reference if written is None else written(problem)


def _prompt(script: Script, chat: ChatFormat | None, problem: Problem) -> str:
    if chat is not None:
        return str(chat.tokenizer.decode(chat.prompt(problem.prompt), skip_special_tokens=False))
    first = script.user_turns(problem.prompt)[0].text
    return first if script.system is None else f"[system]\n{script.system}\n[user]\n{first}"


def _shown(
    drawn: Mapping[Split, Sequence[Problem]], script: Script, chat: ChatFormat | None, show: int
) -> tuple[ShownProblem, ...]:
    """Return the first problems of the test split, then those of other splits until there are ``show``."""
    ordered = [(split, problem) for split in reversed(Split) for problem in drawn.get(split, ())]
    return tuple(ShownProblem(p.id, split.value, _prompt(script, chat, p), p.reference) for split, p in ordered[:show])


def _solutions(task: Task, problems: Sequence[Problem]) -> Sequence[str]:
    """Return whole correct responses: the task's own to these problems, or those of its data; none where it knows no steps."""
    written: Callable[[Problem], str] | None = getattr(task, "solution", None)
    return getattr(task, "responses", ()) if written is None else [written(problem) for problem in problems]


def _lengths(
    problems: Sequence[Problem],
    answers: Sequence[str],
    solutions: Sequence[str],
    script: Script,
    chat: ChatFormat | None,
) -> tuple[Lengths, ...]:
    if not problems:
        return ()
    length: Callable[[str], int] = len if chat is None else lambda text: len(chat.ids(text))
    if chat is None:
        prompts = [len(_prompt(script, None, problem)) for problem in problems]
    else:
        prompts = [len(chat.prompt(problem.prompt)) for problem in problems]
    named = {"first prompt": prompts, "final answer alone": [*map(length, answers)]}
    if solutions:
        named["whole solution"] = [*map(length, solutions)]
    return tuple(Lengths(what, min(n), median_low(n), max(n)) for what, n in named.items())


# --- the checks -------------------------------------------------------------------------------------


def _has_problems(problems: Sequence[Problem]) -> CheckResult:
    return CheckResult("there are problems", bool(problems), f"{len(problems):,} tried")


def _verifier_checks(
    task: Task, problems: Sequence[Problem], answers: Sequence[str], time_limit_s: float
) -> tuple[CheckResult, CheckResult]:
    corrupted = [task.corrupt(problem) for problem in problems]
    items = [*zip(problems, answers, strict=True), *zip(problems, corrupted, strict=True)]
    with Verifier(task, time_limit_s=time_limit_s, failure_limit=1.0) as verifier:
        verdicts = verifier.verify(items)
    accepted, rejected = verdicts[: len(problems)], verdicts[len(problems) :]
    wrong = [_case(*case) for case in zip(problems, answers, accepted, strict=True) if not case[2].correct]
    unknown = {Outcome.CORRECT, Outcome.VERIFIER_FAILED}
    passing = [_case(*case) for case in zip(problems, corrupted, rejected, strict=True) if case[2].outcome in unknown]
    return _counted("correct answers pass", problems, wrong), _counted("corrupted answers fail", problems, passing)


def _case(problem: Problem, answer: str, verdict: Verdict) -> str:
    detail = f" ({verdict.detail})" if verdict.detail else ""
    return f"{problem.id}: {_short(answer)} is {verdict.outcome}{detail}; the reference is {_short(problem.reference)}"


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:30]!r} ... {text[-25:]!r}"


def _counted(claim: str, problems: Sequence[Problem], failures: Sequence[str]) -> CheckResult:
    return CheckResult(claim, not failures, f"{len(problems) - len(failures):,} of {len(problems):,}", tuple(failures))


def _no_overlap(drawn: Mapping[Split, Sequence[Problem]]) -> CheckResult:
    first: dict[str, tuple[Split, Problem]] = {}
    failures = []
    for split, problems in drawn.items():
        for problem in problems:
            other, twin = first.setdefault(normalise(problem.prompt), (split, problem))
            if other is not split:
                failures.append(f"{split} {problem.id} is {other} {twin.id}: {_short(problem.prompt)}")
    return CheckResult("splits share no problem", not failures, f"{len(failures):,} shared", tuple(failures))


def _no_repetition(drawn: Mapping[Split, Sequence[Problem]]) -> CheckResult:
    first: dict[tuple[Split, str], Problem] = {}
    failures = []
    for split, problems in drawn.items():
        for problem in problems:
            twin = first.setdefault((split, problem.prompt.strip()), problem)
            if twin is not problem:
                failures.append(f"{split} {problem.id} is {twin.id}: {_short(problem.prompt)}")
    return CheckResult("no problem occurs twice", not failures, f"{len(failures):,} repeated", tuple(failures))


# --- as text ----------------------------------------------------------------------------------------


def check_json(found: TaskCheck) -> dict[str, Any]:
    """Return what was found as plain values."""
    return {**asdict(found), "passed": found.passed}


def check_text(found: TaskCheck) -> str:
    """Return what was found as text of `WIDTH` columns."""
    lines = [*wrapped(f"task {found.task}, version {found.version}", ""), ""]
    for number, problem in enumerate(found.shown, 1):
        lines += [*wrapped(f"{number}. {problem.split} {problem.id}", ""), *quoted(problem.text)]
        lines += [*wrapped(f"reference: {_short(problem.reference)}", "  "), ""]
    for text in found.later:
        lines += ["before the next attempt:", *quoted(text), ""]
    lines.append("problems")
    for split, count in found.splits.items():
        lines += wrapped(f"{split:6} {_size(count, found.sizes.get(split))}", "  ", "         ")
    for note in found.notes:
        lines += wrapped(f"note: {note}", "  ", "        ")
    if dropped := found.origin.get("repeated_dropped"):
        lines += wrapped(dropped_text(dropped), "  ")
    for hub, commit in found.origin.get("data_commits", {}).items():
        lines += wrapped(f"{hub} at revision {commit}", "  ")
    if found.lengths:
        lines += ["", f"{'lengths in ' + found.unit:28}{'shortest':>10}{'median':>10}{'longest':>10}"]
        lines += [f"  {each.what:26}{each.shortest:10,}{each.median:10,}{each.longest:10,}" for each in found.lengths]
        lines += [line for note in found.room.notes for line in wrapped(note, "  ")]
    lines += ["", "checks"]
    for check in found.checks:
        lines.append(f"  {'ok    ' if check.passed else 'FAILED'}  {check.claim:26}{check.detail}")
        for failure in check.failures[:MAX_FAILURES]:
            lines += wrapped(failure, "          ")
        if len(check.failures) > MAX_FAILURES:
            lines.append(f"          ... and {len(check.failures) - MAX_FAILURES:,} more")
    return "\n".join(lines)


def _size(drawn: int | str, size: int | None) -> str:
    if isinstance(drawn, str):
        return drawn
    return f"{drawn:,}" if size in (None, drawn) else f"{size:,} ({drawn:,} tried)"


def quoted(text: str) -> list[str]:
    """Return a text's lines behind a bar, at most `MAX_LINES` of them."""
    lines = [part for line in text.split("\n") for part in wrapped(line, "  | ")]
    left = len(lines) - MAX_LINES
    return lines if left <= 0 else [*lines[:MAX_LINES], f"  ... and {left:,} more lines"]


def wrapped(text: str, indent: str, later: str | None = None) -> list[str]:
    """Return a text as lines of at most `WIDTH` columns; lines after the first are indented by ``later``."""
    return wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if later is None else later,
        replace_whitespace=False,
    ) or [indent.rstrip()]
