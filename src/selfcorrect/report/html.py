"""Assemble the page: directories in, one HTML file out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from selfcorrect.errors import ConfigError
from selfcorrect.report import published as paper
from selfcorrect.report.cells import percent, seeds_in_words
from selfcorrect.report.commands import Commands
from selfcorrect.report.episode_archive import Archive, pack, packed, sources_of
from selfcorrect.report.episode_figures import episode_figures
from selfcorrect.report.figures import curves_figure, result_figures
from selfcorrect.report.methods import Method, group
from selfcorrect.report.problem_sets import marked
from selfcorrect.report.rows import Rows, all_rows
from selfcorrect.report.sources import Evaluated, Run, read_sources, unfinished_evaluations
from selfcorrect.report.tables import result_tables
from selfcorrect.report.trials import trial_table
from selfcorrect.storage.comparison_dir import read_trials
from selfcorrect.storage.files import check_replaceable, refusals, write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

EPISODES = 20_000
"""Maximum episodes in the browser, by default."""
MOST_EPISODES = 10**9
"""The largest maximum that may be asked for."""
SCRIPTS = ("vendor/d3.min.js", "vendor/plot.min.js", "vendor/diff.min.js")
OWN_SCRIPTS = ("assets/charts.js", "assets/episodes.js", "assets/report.js")
SECTIONS = {
    "results": ("attempts", "flips", "made_of"),
    "behaviour": ("edits", "difficulty", "more_attempts", "votes"),
    "training": ("curves",),
}
"""The figures of each section of the page."""


@dataclass(frozen=True, slots=True)
class Report:
    """A written report: the file, the numbers of runs, evaluations and episodes in it, the runs left out, and its rows.

    ``unfinished`` are the evaluations left out because they have no results yet. ``unsealed`` are the finished runs and
    evaluations without a seal, by which changes would be noticed. ``problem_sets`` describes the problems by their name if rows
    differ in them, so that they are not comparable.
    """

    path: Path
    runs: int
    evaluations: int
    methods: Sequence[str]
    episodes: int
    repeated: Sequence[Path]
    rows: Rows
    unsealed: Sequence[Path] = ()
    unfinished: Sequence[Path] = ()
    problem_sets: Mapping[str, str] = field(default_factory=dict)


def write_report(paths: Sequence[str | Path], out: str | Path, *, episodes: int = EPISODES) -> Report:
    """Write the report of all runs and evaluations at or below ``paths`` into the file ``out``.

    The same directories give the same bytes.

    Args:
        paths: directories of runs or evaluations, or directories that contain some.
        out: the HTML file; it is replaced as a whole.
        episodes: maximum number of episodes in the browser.

    Raises:
        DataError: there is nothing to report, or a file is damaged.
        ConfigError: ``episodes`` is negative.
        RunDirectoryError: ``out`` is not a regular file, or cannot be written.
    """
    place = Path(out)
    check_replaceable(place)
    if not 0 <= episodes <= MOST_EPISODES:
        raise ConfigError(f"episodes = {episodes} must be 0 to {MOST_EPISODES:,}; 0 leaves the browser out.")
    methods, repeated, evaluations, rows, trials, problem_sets = read_report([Path(path) for path in paths])
    archive = pack(sources_of(rows), episodes)
    command = shlex.join(["selfcorrect", "report", *map(str, paths), "--out", str(out)])
    left_out, unfinished = [run.path for run in repeated], unfinished_evaluations([Path(path) for path in paths])
    text = rendered(
        methods,
        evaluations,
        rows,
        archive,
        repeated=left_out,
        unfinished=unfinished,
        trials=trials,
        problem_sets=problem_sets,
        command=command,
    )
    with refusals(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, text.encode("utf-8", "backslashreplace").decode())
    kept = sum(len(method.runs) for method in methods)
    names = [method.name for method in methods]
    everything: list[Run | Evaluated] = [*(run for method in methods for run in method.runs), *repeated, *evaluations]
    unsealed = [source.path for source in everything if not source.sealed and source.results]
    counts = place, kept, len(evaluations), names, archive.episodes
    return Report(*counts, left_out, rows, unsealed, unfinished, problem_sets)


class Contents(NamedTuple):
    """The contents of the directories: methods, runs left out, evaluations outside runs, the rows made of them, sweeps, and the
    problems by name if rows differ in them."""

    methods: Sequence[Method]
    repeated: Sequence[Run]
    evaluations: Sequence[Evaluated]
    rows: Rows
    trials: Sequence[Mapping[str, Any]]
    problem_sets: Mapping[str, str]


def read_report(paths: Sequence[Path]) -> Contents:
    """Read everything that a report on these directories needs."""
    runs, evaluations = read_sources(paths)
    methods, repeated = group(runs)
    trials = [*filter(None, map(read_trials, paths))]
    rows, problem_sets = marked(all_rows(methods, evaluations))
    return Contents(methods, repeated, evaluations, rows, trials, problem_sets)


def rendered(
    methods: Sequence[Method],
    evaluations: Sequence[Evaluated],
    rows: Rows,
    archive: Archive,
    *,
    repeated: Sequence[Path] = (),
    unfinished: Sequence[Path] = (),
    trials: Sequence[Mapping[str, Any]] = (),
    problem_sets: Mapping[str, str] | None = None,
    command: str = "",
) -> str:
    """Return the page's HTML."""
    bases = {run.digests["base"] for method in methods for run in method.runs if "base" in run.digests}
    figures = [*result_figures(rows), *episode_figures(rows), *curves_figure(methods)]
    data = {
        "series": series_styles(rows, methods),
        "figures": {f.id: {"columns": f.columns, "rows": f.rows} for f in figures},
    }
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=_title(methods, evaluations),
            tiles=_tiles(rows),
            tables=[*(result_tables(rows.rows) if rows.rows else []), *(trial_table(sweep, bases) for sweep in trials)],
            stages=any(not row.final for row in rows.rows),
            sections={name: [f for f in figures if f.id in ids] for name, ids in SECTIONS.items()},
            methods=methods,
            evaluations=evaluations,
            repeated=repeated,
            unfinished=unfinished,
            problem_sets=problem_sets or {},
            command=command,
            commands=Commands(methods, evaluations),
            archive=archive,
            data=packed(data),
            paper=paper,
            styles=_asset("assets/report.css"),
            scripts=[_asset(name) for name in (*SCRIPTS, *OWN_SCRIPTS)],
            licenses=[(name, _asset(f"vendor/{name}.LICENSE")) for name in ("d3", "plot", "diff")],
        )
    )


def series_styles(rows: Rows, methods: Sequence[Method]) -> dict[str, int]:
    """Return the colour number of every series; 0 is the base's grey."""
    names = dict.fromkeys([*rows.series, *(method.name for method in methods)])
    others = [name for name in names if name != "base"]
    return {name: 0 if name == "base" else others.index(name) + 1 for name in names}


# ---------------------------------------------------------------- words


def _title(methods: Sequence[Method], evaluations: Sequence[Evaluated]) -> str:
    tasks = {method.runs[0].settings.get("task", {}).get("name", "addition") for method in methods}
    tasks |= {evaluation.identity["task"]["name"] for evaluation in evaluations}
    return f"Self-correction on {', '.join(sorted(map(str, tasks)))}"


@dataclass(frozen=True, slots=True)
class Tile:
    """A metric in large type at the top of the page."""

    label: str
    value: str
    note: str


def _tiles(rows: Rows) -> list[Tile]:
    """Return the metrics of the main method: SCoRe if it is there, else the first."""
    finals = [row for row in rows.finals if row.series != "base" and row.estimate("delta")]
    row = next((row for row in finals if row.paper == "score"), finals[0] if finals else None)
    if row is None:
        return []
    tiles = []
    for label, figure in (("first attempt", "acc_t1"), ("second attempt", "acc_t2"), ("delta", "delta")):
        estimate = row.estimate(figure)
        assert estimate is not None
        signed = figure == "delta"
        ends = [percent(end, signed=signed) for end in (estimate.low, estimate.high)]
        note = f"95% interval {ends[0]} to {ends[1]}; " if estimate.low is not None else ""
        note += f"{seeds_in_words(row)}; n = {row.problems:,}"
        tiles.append(Tile(f"{row.label}, {label}", percent(estimate.mean, signed=signed), note))
    return tiles


# ---------------------------------------------------------------- files of the package


def _asset(name: str) -> str:
    return (resources.files("selfcorrect.report") / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("selfcorrect.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = _signed
    return environment


def _signed(value: Any) -> str:
    return f"{value:+.1f}".replace("-", "−")
