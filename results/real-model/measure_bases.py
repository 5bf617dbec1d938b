"""Which task suits a real model? Measure bases on candidates; nothing is trained by reinforcement learning.

    python results/real-model/measure_bases.py --work DIR [--out bases.jsonl] [--until PART] [NAME ...]

For each candidate of `candidates.py`, a cold start: supervised steps on the task's solutions, until the greedy first attempts
at the development problems are correct often enough. Every look has the draft swap: second attempts at other problems' drafts.
Then the same on ``--problems`` problems, greedily and at T = 1. Then the probe, 60 supervised steps on pairs of the base's own
draft and the right answer, and the greedy measurement again: does the second attempt now read the draft, and correct it?
A measurement is made only if the ones before meet the protocol's conditions.
``--until`` ends before the rest; ``--table`` prints what was measured.

Every measurement is a line of ``--out``, and measurements that stand there are not repeated. Runs and episodes lie in
``--work``; an interrupted training or evaluation resumes there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from candidates import CANDIDATES, DTYPE, LOOKED_AT, LORA, MODEL, RATE, TRAIN, Candidate
from skills import share_known

from selfcorrect import Split, get_task, load_config, resume, train
from selfcorrect.config.schema import Config, LoRAConfig, ModelConfig
from selfcorrect.config.toml import make_config
from selfcorrect.engines.hf import HFEngine
from selfcorrect.evaluation.evaluation import Evaluation
from selfcorrect.evaluation.evaluator import EvalPlan, Evaluator
from selfcorrect.evaluation.intervals import independent_interval
from selfcorrect.evaluation.metrics import answer_changed
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import shuffled
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollouter import TokenRollouter
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.training.learner import Learner
from selfcorrect.training.sample import Segment, TrainingSample
from selfcorrect.training.sft import supervised_gradient
from selfcorrect.zoo.resolve import find_model

HERE = Path(__file__).parent
PARTS = ("look", "greedy", "sampled", "probe")
LOOKS, SKILL_LOOKS = (10, 20, 40), (40, 80, 120, 160, 200)
"""Steps of the cold start after which the first attempts are looked at; and the second skill, if it teaches one."""
KNOWN, ASKED = 0.90, 32
"""The cold start that teaches a second skill ends with this share of correct verdicts, two about each of these problems."""
KINDS = ("verdicts", "orders", "kept")
ENOUGH, TOO_MUCH = 0.30, 0.65
"""The cold start ends at the first look with this Acc@t1; above the second, the task is too easy."""
COPIES = -15.0
"""The draft swap in points, at most: above it, the second attempt does not depend on the draft."""
LEFT_TO_LEARN = 0.05
"""Delta, at most: above it, the base corrects already."""
EXPLORED = 0.03
"""The sampled second attempts behind incorrect drafts that are correct, at least: what is never sampled is never reinforced."""
PROBE_STEPS = 60
CHUNK = 128
"""Episodes in one batch; affects memory and speed only."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"candidates: {', '.join(CANDIDATES)}")
    parser.add_argument("--work", type=Path, required=True, help="directory of runs and episodes")
    parser.add_argument("--out", type=Path, default=HERE / "bases.jsonl", help="measurements, one a line")
    parser.add_argument("--until", choices=PARTS, default=PARTS[-1], help="the last part to measure")
    parser.add_argument("--looks", help="steps of the cold start to look after, with commas between")
    parser.add_argument("--problems", type=int, default=300, help="development problems of all but the looks")
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a step of the probe")
    parser.add_argument("--rate", type=float, default=3e-4, help="the probe's learning rate")
    parser.add_argument("--table", action="store_true", help="print the measurements as a table, and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(f"{table(known := Book(arguments.out).known.values())}\n\n{skill_table(known)}")
        return
    plan = Plan(
        parts=PARTS[: PARTS.index(arguments.until) + 1],
        looks=[int(steps) for steps in arguments.looks.split(",")] if arguments.looks else None,
        problems=arguments.problems,
        probe=Probe(arguments.pairs, arguments.rate),
    )
    for name in arguments.names or CANDIDATES:
        for line in measured(name, CANDIDATES[name], arguments.work / name, Book(arguments.out), plan):
            print(json.dumps(line), flush=True)


@dataclass(frozen=True)
class Probe:
    """The probe's pairs a step and its learning rate."""

    pairs: int
    rate: float

    @property
    def name(self) -> str:
        return f"probe {self.pairs} x {self.rate:g}"


@dataclass(frozen=True)
class Plan:
    """What is measured: the parts, the steps of the looks, the problems of the other parts, and the probe."""

    parts: Sequence[str]
    looks: Sequence[int] | None
    problems: int
    probe: Probe


class Book:
    """The file of measurements."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[tuple[str, str], dict[str, Any]] = {
            (line["candidate"], line["part"]): line for line in map(json.loads, lines)
        }

    def line(self, name: str, part: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return a measurement, from the file if it stands there."""
        if (name, part) not in self.known:
            begin = time.perf_counter()
            found = {"candidate": name, "part": part, **measure()}
            self.known[name, part] = {**found, "seconds": round(time.perf_counter() - begin)}
            with self.path.open("a") as file:
                file.write(json.dumps(self.known[name, part]) + "\n")
        return self.known[name, part]


def measured(name: str, candidate: Candidate, work: Path, book: Book, plan: Plan) -> Iterator[Mapping[str, Any]]:
    """Yield a candidate's measurements one after the other, as far as the ones before justify the next."""
    work.mkdir(parents=True, exist_ok=True)
    steps = yield from started(name, candidate, work, book, plan)
    if steps is None:
        return
    probe, n = plan.probe, plan.problems
    cold, trained = f"{work / 'cold'}:cold", work / probe.name
    for part, t in (("greedy", 0.0), ("sampled", 1.0)):
        if part not in plan.parts:
            return
        found = partial(sampled, cold, candidate, t, work / f"cold-{steps}-T{t:g}-{n}", n)
        yield (line := book.line(name, f"cold {steps}, T={t:g}", found))
        copies = line["draft_swap"][0] <= COPIES and line["acc_t2"] - line["acc_t1"] <= LEFT_TO_LEARN
        reinforced = t == 0 or line["i_to_c"] >= EXPLORED * (1 - line["acc_t1"])
        if not (ENOUGH <= line["acc_t1"] <= TOO_MUCH and copies and reinforced):
            return
    if "probe" not in plan.parts:
        return
    yield book.line(name, probe.name, partial(probed, candidate, work, probe))
    found = partial(sampled, str(trained), candidate, 0.0, trained / f"T0-{n}", n)
    yield book.line(name, f"{probe.name}, T=0", found)


def started(
    name: str, candidate: Candidate, work: Path, book: Book, plan: Plan
) -> Generator[Mapping[str, Any], None, int | None]:
    """Train the cold start up to the first look with enough correct first attempts, or verdicts where it teaches a skill.

    Return its steps; None if no look has enough, or the first that has is too good.
    """
    looks, what, look, key, enough = LOOKS, "cold", looked_at, "acc_t1", ENOUGH
    if candidate.taught:
        looks, what, look, key, enough = SKILL_LOOKS, "skill", asked, "verdicts", KNOWN
    for steps in plan.looks or looks:
        yield (line := book.line(name, f"{what} {steps}", partial(look, candidate, work, steps)))
        if line[key] >= enough:
            return steps if line.get("acc_t1", 0) <= TOO_MUCH else None
    return None


# -- the cold start ----------------------------------------------------------------------------------------------------


def settings(candidate: Candidate, work: Path, steps: int) -> Config:
    """Return the cold start as a run: one stage, and no evaluation to speak of."""
    written = candidate.written is not None or candidate.taught
    shown = {"demonstrations": str(demonstrations(candidate, work))} if written else {}
    return make_config(
        {
            "task": {
                "name": candidate.task,
                "options": dict(candidate.options),
                "train_problems": TRAIN,
                "dev_problems": 1,
            },
            "model": {"source": MODEL, "dtype": DTYPE, "lora": LORA},
            "rollout": {"batch_size": 16, "max_tokens": candidate.max_tokens, "stop": list(candidate.stop)},
            "optimizer": {"learning_rate": RATE},
            "stages": {"cold": {"method": "sft", "steps": steps, "batch_size": candidate.batch, **shown}},
            "eval": {"problems": 1, "split": "dev", "sampled": False, "controls": False, "dev_every": 0},
            "log": {"save_every": LOOKS[0], "trackers": []},
        }
    )


def demonstrations(candidate: Candidate, work: Path) -> Path:
    """Write to a file what the cold start shows: a second skill, or the solutions for a task that has none itself."""
    task = get_task(candidate.task, candidate.options)
    lines: list[Mapping[str, Any]] = []
    for problem in task.problems(Split.TRAIN, seed=0, limit=TRAIN):
        lines += [{"messages": talk} for teach in candidate.taught.values() for talk in teach(problem)]
        if candidate.written is not None:
            response = candidate.written(problem)
            assert task.verify(problem, response).correct, (problem.prompt, response)
            lines.append({"prompt": problem.prompt, "response": response})
    path = (work / "shown.jsonl").resolve()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def trained_to(candidate: Candidate, work: Path, steps: int) -> None:
    """Train the cold start up to a step."""
    run = work / "cold"
    if not (run / "config.toml").exists():
        train(settings(candidate, work, steps), run)
    elif load_config(run / "config.toml").stages["cold"].steps <= steps:
        resume(run, overrides=[f"stages.cold.steps={steps}"])


def asked(candidate: Candidate, work: Path, steps: int) -> dict[str, Any]:
    """Train the cold start up to a step, and return the share of each skill's replies that it writes."""
    trained_to(candidate, work, steps)
    model = found_at(f"{work / 'cold'}:cold")
    problems = get_task(candidate.task, candidate.options).problems(Split.DEV, seed=0, limit=ASKED)
    shares = {
        kind: share_known(model, problems, teach, candidate.max_tokens) for kind, teach in candidate.taught.items()
    }
    return {"demonstrations": steps * candidate.batch, "asked": 2 * len(problems), **shares}


def looked_at(candidate: Candidate, work: Path, steps: int) -> dict[str, Any]:
    """Train the cold start up to a step, and look at both greedy attempts at the development problems."""
    trained_to(candidate, work, steps)
    model, folder = found_at(f"{work / 'cold'}:cold"), work / f"look-{steps}" / "episodes"
    return {
        "demonstrations": steps * candidate.batch,
        **figures(evaluated(model, candidate, 0.0, folder, limit=LOOKED_AT)),
    }


def found_at(place: str) -> LanguageModel:
    return find_model(ModelConfig(source=place, dtype=DTYPE), seed=0).merged()


# -- the probe ---------------------------------------------------------------------------------------------------------


def probed(candidate: Candidate, work: Path, probe: Probe) -> dict[str, Any]:
    """Train the base on pairs of its own draft (T = 1) and the task's solution, and save the model."""
    base = found_at(f"{work / 'cold'}:cold")
    task = get_task(candidate.task, candidate.options)
    count = PROBE_STEPS * probe.pairs
    asides = len(task.script.user_turns()) - task.script.turns  # feedback between the attempts, which a pair keeps
    turns = 2 if asides else 1
    drafts = evaluated(base, candidate, 1.0, work / f"drafts-{count}", split=Split.TRAIN, limit=count, turns=turns)
    problems = {p.id: p for p in task.problems(Split.TRAIN, seed=0, limit=count)}
    chat = ChatFormat(base.tokenizer, task.script)
    policy = base.with_adapter("policy", LoRAConfig(**LORA))
    samples = [pair(chat, episode, problems[episode.problem_id], task, candidate) for episode in drafts.episodes]
    losses = fitted(policy, samples, probe)
    policy.merged().save(work / probe.name)
    correct = sum(episode.attempts[0].judged.correct for episode in drafts.episodes)
    return {"pairs": len(samples), "correct_drafts": correct, "losses": [round(loss, 4) for loss in losses]}


def pair(chat: ChatFormat, episode: StoredEpisode, problem: Any, task: Any, candidate: Candidate) -> TrainingSample:
    """Return a draft and the feedback on it, if the script asks for any, as context, and the right answer as second attempt."""
    before, segments = chat.prompt(problem.prompt), []
    for k, turn in enumerate(episode.turns[: len(chat.script.user_turns()) - 1], 1):
        segments.append(Segment(before, turn.tokens))
        before = chat.observation_ids(k, problem.prompt, turn.tokens)
    if candidate.revised is not None:
        answer = candidate.revised(problem, episode.attempts[0].text)
    else:
        answer = (candidate.written or task.solution)(problem)
    segments.append(Segment(before, chat.given_ids(answer), turn=1))
    return TrainingSample.of_segments(segments)


def fitted(policy: LanguageModel, samples: Sequence[TrainingSample], probe: Probe) -> list[float]:
    """Take the probe's steps, each on the next batch of one shuffled pass; return their losses."""
    learner = Learner(policy, load_config("demo", [f"optimizer.learning_rate={probe.rate}"]).optimizer)
    order, losses = shuffled(range(len(samples)), len(samples), 0, "probe"), []
    for step in range(PROBE_STEPS):
        batch = [samples[i] for i in order[step * probe.pairs : (step + 1) * probe.pairs]]
        losses.append(supervised_gradient(learner, batch, rows=len(batch)).loss)
        learner.update(probe.rate, f"probe, step {step + 1}")
    return losses


# -- evaluations -------------------------------------------------------------------------------------------------------


def evaluated(
    model: LanguageModel,
    candidate: Candidate,
    temperature: float,
    folder: Path,
    *,
    split: Split = Split.DEV,
    limit: int,
    turns: int = 2,
) -> Evaluation:
    """Return the attempts at some problems and, if there are two, the second attempts at other problems' drafts."""
    folder.mkdir(parents=True, exist_ok=True)
    task = get_task(candidate.task, candidate.options)
    plan = EvalPlan(
        turns, 0, candidate.max_tokens, temperature, controls=turns > 1 and split is Split.DEV, stop=candidate.stop
    )
    problems = task.problems(split, seed=0, limit=limit)
    rollouter = TokenRollouter(HFEngine(model, max_num_seqs=CHUNK), model.tokenizer, chunk=CHUNK)
    with Verifier(task) as verifier:
        return Evaluator(rollouter, task.script, verifier, problems, plan, name="eval", folder=folder).run()


def sampled(model: str, candidate: Candidate, temperature: float, folder: Path, limit: int) -> dict[str, Any]:
    return figures(evaluated(found_at(model), candidate, temperature, folder, limit=limit))


def figures(found: Evaluation) -> dict[str, Any]:
    """Return what decides: accuracies, changes, exact copies, and the controls' differences in points, with intervals.

    ``changed_i`` and ``changed_c`` are the changed answers behind incorrect and correct drafts, and of how many.
    """
    results = found.to_json()
    copies = [e.attempts[0].text == e.attempts[1].text for e in found.episodes]
    changed: dict[str, list[bool]] = {"changed_i": [], "changed_c": []}
    for first, second, *_ in (e.graded() for e in found.episodes):
        changed["changed_c" if first.correct else "changed_i"].append(answer_changed(first, second))
    kept = {key: results[key] for key in ("n", "acc_t1", "acc_t2", "i_to_c", "c_to_i", "answer_change_rate")}
    controls = {
        name: [round(100 * value, 1) for value in (control["difference"], *control["difference_ci95"])]
        for name, control in results.get("controls", {}).items()
    }
    split = {name: [sum(flags), len(flags)] for name, flags in changed.items()}
    tokens = [round(turn["mean"], 1) for turn in results["lengths"]]
    return {**kept, "copies": sum(copies) / len(copies), **split, "tokens": tokens, **controls}


def table(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of all measurements; rates in % of the problems, the swap in points with its 95% interval."""
    head = ["candidate", "model", "n", "t1", "t2", "i->c", "c->i", "answer changes", "behind incorrect less correct"]
    head += ["exact copies", "tokens", "swap"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        if "acc_t1" in line:
            rates = [line[key] for key in ("acc_t1", "acc_t2", "i_to_c", "c_to_i", "answer_change_rate")]
            tokens = " / ".join(f"{count:.0f}" for count in line["tokens"])
            shown = [*(f"{100 * rate:.1f}" for rate in rates), looks_at_errors(line), f"{100 * line['copies']:.1f}"]
            rows.append([line["candidate"], line["part"], str(line["n"]), *shown, tokens, points(*line["draft_swap"])])
    return in_markdown(rows)


def looks_at_errors(line: Mapping[str, Any]) -> str:
    """Return how much more often answers change behind incorrect than behind correct drafts, in points; old lines do not say."""
    if "changed_i" not in line:
        return ""
    (i, of_i), (c, of_c) = line["changed_i"], line["changed_c"]
    return points(*(100 * value for value in (i / of_i - c / of_c, *independent_interval(i, of_i, c, of_c))))


def points(value: float, low: float, high: float) -> str:
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def skill_table(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the looks at a second skill: replies written exactly, in % of those asked for."""
    rows = [["candidate", "model", "conversations seen", "asked of each kind", *KINDS], ["---"] * 7]
    for line in lines:
        if "verdicts" in line:
            shares = [f"{100 * line[kind]:.0f}" if kind in line else "" for kind in KINDS]
            rows.append([line["candidate"], line["part"], str(line["demonstrations"]), str(line["asked"]), *shares])
    return in_markdown(rows)


def in_markdown(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
