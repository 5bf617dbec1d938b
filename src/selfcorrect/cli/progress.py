"""Progress on stderr: bars on a terminal, occasional plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from selfcorrect.cli.console import say
from selfcorrect.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

EVERY_STEPS = 20
"""Steps between two lines of a stage, without a terminal."""
STEPS_S = 60.0
"""Seconds after which the next step has a line in any case."""
EVERY_S = 10.0
"""Seconds between two lines about anything else, without a terminal."""


class Reporter:
    """A silent reporter; its methods fit `Callbacks`."""

    def on_step(self, record: Any) -> None:
        """Take note of a training step."""

    def on_eval(self, name: str, evaluation: Any) -> None:
        """Take note of a final evaluation."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Take note of progress in anything else that takes time."""

    def on_left(self, seconds: float) -> None:
        """Take note of the estimated time left of the evaluation that reports its progress next."""

    def line(self, text: str) -> None:
        """Print a message."""
        say(text)


class Pace:
    """The seconds of a step, with what a run does between two, and the time that the steps left take."""

    def __init__(self, steps: Mapping[str, int]) -> None:
        self.steps = steps
        self._stage, self._first, self._since = "", 0, 0.0

    def after(self, stage: str, step: int, phases: Mapping[str, float]) -> str:
        """Return the pace as text; of a stage's first step here, whose start is unknown, by its phases."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._first, self._since = stage, step, now
            seconds = sum(phases.values())
        else:
            seconds = (now - self._since) / max(1, step - self._first)
        left = self._left(stage, step) * seconds
        return f"  {seconds:.2g} s/step, {duration(left)} left to train" if seconds and stage in self.steps else ""

    def _left(self, stage: str, step: int) -> int:
        """Return the steps of this stage and of those after it that are still to be taken."""
        names = list(self.steps)
        return sum(self.steps[name] for name in names[names.index(stage) :]) - step if stage in names else 0


def duration(seconds: float) -> str:
    """Return a duration in its largest unit.

    >>> duration(7.4), duration(125), duration(7560)
    ('7 s', '2 min', '2.1 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5940 else f"{seconds / 3600:.1f} h"


def left_text(seconds: float | None) -> str:
    """Return the estimated time left of an evaluation, in words; nothing where it is not known, or none is left."""
    return f", about {duration(seconds)} left" if seconds else ""


class Lines(Reporter):
    """A reporter that prints plain lines; with ``verbose`` one per step."""

    def __init__(self, steps: Mapping[str, int], *, verbose: bool = False, label: Callable[[str], str] = str) -> None:
        self.steps, self.every, self.label = steps, 1 if verbose else EVERY_STEPS, label
        self._last = self._last_step = time.monotonic()
        self._left: float | None = None
        self.pace = Pace(steps)

    def on_step(self, record: Any) -> None:
        metrics = record.metrics
        stage, step = metrics["stage"], metrics["step"]
        total = self.steps.get(stage)
        pace = self.pace.after(stage, step, getattr(record, "seconds", {}))
        now = time.monotonic()
        if step % self.every == 0 or step in (1, total) or now - self._last_step >= STEPS_S:
            self._last_step = now
            self.line(f"{self.label(stage)} {step}/{total or '?'}: {step_text(metrics)}{pace}")

    def on_eval(self, name: str, evaluation: Any) -> None:
        self.line(f"{self.label(name)}: {result_text(evaluation)}")

    def on_progress(self, what: str, done: int, total: int) -> None:
        now, left = time.monotonic(), self._left
        self._left = None  # the next activity may not know its own
        if now - self._last >= EVERY_S:
            self._last = now
            self.line(f"{what} {done}/{total}{left_text(left)}")

    def on_left(self, seconds: float) -> None:
        self._left = seconds


class Bars(Reporter):
    """A reporter with one bar per stage and one for each other activity; used inside ``with reporter.bars``."""

    def __init__(self, console: Console, steps: Mapping[str, int], *, label: Callable[[str], str] = str) -> None:
        from rich import progress
        from rich.table import Column

        self.steps, self.label = steps, label
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=16),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            progress.TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
        )
        self._tasks: dict[str, Any] = {}
        self._left: float | None = None

    def on_step(self, record: Any) -> None:
        metrics = record.metrics
        self._show(metrics["stage"], metrics["step"], self.steps.get(metrics["stage"]), step_text(metrics))

    def on_eval(self, name: str, evaluation: Any) -> None:
        for what in [what for what in self._tasks if what not in self.steps]:
            self.bars.remove_task(self._tasks.pop(what))
        self.line(f"{self.label(name)}: {result_text(evaluation)}")

    def on_progress(self, what: str, done: int, total: int) -> None:
        left, self._left = self._left, None
        self._show(what, done, total, left_text(left).removeprefix(", "))

    def on_left(self, seconds: float) -> None:
        self._left = seconds

    def line(self, text: str) -> None:
        self.bars.console.print(f"selfcorrect: {printable(text)}", markup=False, highlight=False, soft_wrap=True)

    def _show(self, what: str, done: int, total: int | None, note: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self.bars.add_task(self.label(what), total=total, note=note, completed=done)
        self.bars.update(self._tasks[what], completed=done, total=total, note=note)


@contextmanager
def reporting(
    steps: Mapping[str, int], *, quiet: bool = False, verbose: bool = False, label: Callable[[str], str] = str
) -> Iterator[Reporter]:
    """Yield the reporter that suits stderr, and send the package's log to it meanwhile.

    ``steps`` maps each stage to its number of steps; ``label`` returns what a stage's model is called.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        with _logging_to(Reporter(), logging.WARNING) as reporter:
            yield reporter
    elif console.is_terminal:
        bars = Bars(console, steps, label=label)
        with bars.bars, _logging_to(bars, logging.DEBUG if verbose else logging.INFO) as reporter:
            yield reporter
    else:
        with _logging_to(
            Lines(steps, verbose=verbose, label=label), logging.DEBUG if verbose else logging.INFO
        ) as reporter:
            yield reporter


def step_text(metrics: Mapping[str, Any]) -> str:
    """Return a step's main metrics: mean rewards of attempts and verifications, delta, KL to the base in nats per turn."""
    turns = [key.removeprefix("r") for key in metrics if key[0] == "r" and key[1:].isdigit()]
    parts = [f"r{k} {metrics[f'r{k}']:.3f}" for k in turns]
    parts += [f"{key} {metrics[key]:.3f}" for key in metrics if key.startswith("rv")]
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.3f}")
    if "delta" in metrics:
        parts.append(f"delta {metrics['delta']:+.3f}")
    divergences = [
        f"{round(metrics[f'kl_base_t{k}'], 2) + 0.0:.2f}" for k in turns if metrics.get(f"kl_base_t{k}") is not None
    ]
    if divergences:
        parts.append(f"kl {' '.join(divergences)}")
    return "  ".join(parts)


def result_text(evaluation: Any) -> str:
    """Return the accuracies of an evaluation in one line."""
    results = evaluation.results
    parts = [f"Acc@t{k} {100 * turn.accuracy:.1f}%" for k, turn in enumerate(results.turns, 1)]
    return ", ".join([*parts, f"n = {results.n:,}"])


class _Forward(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.reporter.line(f"{level}{record.getMessage()}")


@contextmanager
def _logging_to(reporter: Reporter, level: int) -> Iterator[Reporter]:
    log = logging.getLogger("selfcorrect")
    handler, before = _Forward(reporter), (log.level, log.propagate)
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
    try:
        yield reporter
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
