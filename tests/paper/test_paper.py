"""Test the paper's comparison: its rows, their common budget, what they share, and resuming."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.episodes import problem
from support.killed import finish_until_killed
from support.models import tiny_model
from support.verifiers import FunctionVerifier

from selfcorrect.__main__ import main
from selfcorrect.cli import paper as paper_command
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config, make_config, to_toml
from selfcorrect.errors import ConfigError, InterruptedRun, ModelError, RunDirectoryError, TrainingError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.paper import time_estimate as cost
from selfcorrect.paper import worker_pool as work
from selfcorrect.paper.archive import pack
from selfcorrect.paper.cards import write_cards
from selfcorrect.paper.extra_evaluations import extra_evaluations
from selfcorrect.paper.gpu_cost import ComparisonCost, comparison_cost
from selfcorrect.paper.plan import RunSpec, check_specs, plan
from selfcorrect.paper.recipe import Recipe
from selfcorrect.paper.rows import ROWS, MethodRow, chosen_rows
from selfcorrect.paper.sweep import Grid, check_trials, settle, settled_before, trials
from selfcorrect.paper.time_estimate import Throughput, evaluated_completions, measured
from selfcorrect.report.episode_figures import episode_figures
from selfcorrect.report.html import read_report
from selfcorrect.report.tables import result_tables
from selfcorrect.report.trials import trial_table
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runs.estimate import estimate
from selfcorrect.runs.fork import config_prefix, fork
from selfcorrect.runs.model_shape import Cluster, Lengths, ModelShape
from selfcorrect.runs.run import train
from selfcorrect.script import FEEDBACK, SAID_WRONG, VERIFY, VERIFY_BY_DIGIT, Script, UserTurn
from selfcorrect.storage.comparison_dir import read_trials
from selfcorrect.storage.files import read_jsonl
from selfcorrect.storage.seal import sealed
from selfcorrect.tasks import get_task
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Judgement, Role, Split
from selfcorrect.zoo.addition import make_tokenizer
from selfcorrect.zoo.resolve import model_path

ANCHORS1, ANCHORS2 = ({"base": 0.11}, {"base": 0.01}), ({"base": 0.1}, {"base": 0.02})
MINIATURE: dict[str, Any] = {
    "task": {"name": "jsonl", "train_problems": 60, "dev_problems": 4},
    "rollout": {"batch_size": 16, "group_size": 4, "max_tokens": 4},
    "stages": {
        "stage1": {"steps": 1, "reward_weights": [0, 1], "kl_coefs": ANCHORS1},
        "score": {"steps": 3, "reward_weights": [1, 1], "bonus": 4, "kl_coefs": ANCHORS2},
    },
    "eval": {"problems": 6, "dev_every": 0},
    "log": {"save_every": 2, "keep_window": 2, "tensorboard": False},
}
"""4 steps of 16 episodes: 4 * 16 * 2 = 128 completions."""
TEXTS, STEPS = 128, 4
VERIFIED = ("pag", "s2r", "self-rewarding")
"""The rows whose conversations have a verification."""
TRAINED = [row.key for row in ROWS if row.key not in ("base", "self-refine")]
KINDS = {row.key: row for row in ROWS}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with random weights and a task that it sometimes solves: any text of odd length is correct."""
    folder = tmp_path_factory.mktemp("paper")
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
    tiny_model(3, dtype=torch.float32, **tiny).save(folder / "model")
    rows = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a in range(10) for b in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "odd_is_right.py").write_text("def right(text, reference, row):\n    return len(text) % 2 == 1\n")
    (folder / "miniature.toml").write_text(to_toml(miniature(folder)))
    return folder


def miniature(folder: Path) -> Config:
    options = {"path": str(folder / "rows.jsonl"), "verifier": "odd_is_right:right", "trusted": True}
    settings = {**MINIATURE, "task": {**MINIATURE["task"], "options": options}}
    return make_config({**settings, "model": {"source": str(folder / "model")}})


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the current directory the one where a task's verifier is looked up."""
    monkeypatch.chdir(place)


FEW = [
    "base",
    "self-refine",
    "star+",
    "pair-sft",
    "score",
    "no-stage1",
    "no-bonus",
    "offline",
    "tree-alone",
    "pag",
    "self-rewarding",
    "self-verification",
    "thinktwice",
    "distilled",
    "three-turns",
]
"""Two rows that are only measured, and the thirteen whose code paths differ."""


@pytest.fixture(scope="module", params=[FEW, pytest.param(list(KINDS), marks=pytest.mark.nightly)], ids=["few", "all"])
def rows(request: pytest.FixtureRequest) -> tuple[MethodRow, ...]:
    return tuple(chosen_rows(request.param))


@pytest.fixture(scope="module")
def finished(place: Path, rows: tuple[MethodRow, ...]) -> Iterator[Path]:
    """Run the rows with one seed in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        out = place / f"finished-{len(rows)}"
        for spec in plan(miniature(place), rows, [0], out):
            assert work.finish(spec).error is None, spec.name
        write_cards(rows, miniature(place), out)
        yield out


def made(key: str, **changes: Any) -> Config:
    settings = {**MINIATURE, "task": {**MINIATURE["task"], "name": "addition"}, **changes}
    return KINDS[key].make(Recipe.of(make_config(settings)))


# ---------------------------------------------------------------- what each row is

USUAL = {
    "stage1": {"steps": 1, "reward_weights": (0, 1), "kl_coefs": ANCHORS1},
    "score": {"steps": 3, "reward_weights": (1, 1), "bonus": 4, "kl_coefs": ANCHORS2},
}


def stage2(**changes: Any) -> dict[str, Any]:
    return {**USUAL, "score": {**USUAL["score"], **changes}}


def supervised(method: str, rounds: int, correct_pairs: str, steps: int = 4) -> dict[str, Any]:
    return {"method": method, "steps": steps, "rounds": rounds, "correct_pairs": correct_pairs}


STAGES: dict[str, dict[str, Any]] = {
    "base": {},
    "self-refine": {},
    "star": {"star": supervised("star", 3, "none")},
    "star+": {"star": supervised("star", 3, "all")},
    "pair-sft": {"pair_sft": supervised("pair_sft", 1, "none")},
    "pair-sft+": {"pair_sft": supervised("pair_sft", 1, "all")},
    "score": USUAL,
    "single-turn": {"score": {"steps": 4, "batch_size": 32, "reward_weights": (1,), "kl_coefs": ({"base": 0.1},)}},
    "last-turn": {"score": {"steps": 4, "reward_weights": (0, 1), "kl_coefs": ({}, {"base": 0.02})}},
    "no-stage1": {"score": {**USUAL["score"], "steps": 4}},
    "no-bonus": stage2(bonus=0),
    "star-stage2": {"stage1": USUAL["stage1"], "star": supervised("star", 3, "all", steps=3)},
    "offline": stage2(offline_share=0.5, offline_apart=True),
    "weighted": stage2(bonus=0, reward_weights=(1, 5)),
    "weighted-alone": {"score": {**USUAL["score"], "steps": 4, "bonus": 0, "reward_weights": (1, 5)}},
    "fitted-alone": {
        "score": {**USUAL["score"], "steps": 4, "bonus": 0, "reward_weights": (1, 5), "baseline": "fitted"}
    },
    # 8 completions a problem: 2 first attempts with 3 revisions each
    "tree-alone": {
        "score": {
            **USUAL["score"], "steps": 4, "bonus": 0, "reward_weights": (1, 5), "revisions": 3, "batch_size": 24,
        }
    },
    "discount-1": stage2(discount=1),
    "discount-0.8": stage2(discount=0.8, bonus=1),
    "offline-mix": stage2(offline_share=0.25),
    "adaptive": {**USUAL, "stage1": {**USUAL["stage1"], "adaptive": {}}},
    # 32 completions a step: 8 episodes of at most 3, in groups of 4
    "pag": {"pag": {"steps": 4, "batch_size": 8, "method": "pag", "reward_weights": (1, 1), "bonus": 1, "kl_coefs": ({}, {})}},
    "s2r": {"s2r": {"steps": 4, "batch_size": 8, "method": "s2r", "reward_weights": (1, 1), "kl_coefs": ({}, {})}},
    # First at most 2 completions an episode, then 3; the KL coefficient 0.02 at a reward of 1 + 4, so 0.004 at 1.
    "self-rewarding": {
        "ift": {
            "steps": 1, "batch_size": 16, "method": "self_rewarding_ift", "rounds": 1, "learn": "both",
            "correct_pairs": "equal",
        },
        "self_rewarding": {
            "steps": 3, "batch_size": 8, "method": "self_rewarding", "reward_weights": (0, 1),
            "kl_coefs": ({"ift": 0.004}, {"ift": 0.004}), "verification": {"weight": 0, "kl_coefs": {"ift": 0.004}},
        },
    },
    # 16 attempts and 16 verifications a step
    "self-verification": {
        "self_verification": {
            "steps": 4, "batch_size": 16, "method": "self_verification", "reward_weights": (1,), "kl_coefs": ({"base": 0.1},),
        },
    },
    # 32 completions a step: first attempts, then as many revisions of one draft a problem
    "thinktwice": {
        "thinktwice": {
            "steps": 4, "batch_size": 32, "method": "thinktwice", "reward_weights": (1, 1), "kl_coefs": ({}, {}),
        },
    },
    "distilled": {
        "score": {**USUAL["score"], "steps": 4, "bonus": 0, "reward_weights": (1, 5), "method": "distilled", "distill_weight": 1}
    },
    # 128 completions in 4 steps: 1 step of 28 episodes of two turns, and 3 steps of 8 episodes of three
    "three-turns": {
        "stage1a": {**USUAL["stage1"], "batch_size": 28},
        "stage1b": {
            "steps": 1, "batch_size": 8, "reward_weights": (0, 0, 1),
            "kl_coefs": ({"base": 0.01, "stage1a": 0.1}, {"base": 0.01, "stage1a": 0.1}, {"base": 0.01}),
        },
        "score": {
            "steps": 2, "batch_size": 8, "reward_weights": (1, 1, 1), "bonus": 4,
            "kl_coefs": ({"base": 0.1}, {"base": 0.02}, {"base": 0.02}),
        },
    },
}  # fmt: skip
"""Every row by hand, from METHOD's words; what is not written has its default."""


@pytest.mark.parametrize("key", [row.key for row in ROWS])
def test_each_row_is_what_the_method_says(key: str) -> None:
    rollout = {**MINIATURE["rollout"], **({"group_size": 6, "batch_size": 24} if key == "tree-alone" else {})}
    found, expected = made(key), make_config({"rollout": rollout, "stages": STAGES[key]})
    assert found.rollout == expected.rollout
    assert list(found.stages) == list(expected.stages)
    assert found.stages == expected.stages
    usual = made("score")
    assert found.turns == (3 if key == "three-turns" else 2)
    apart = {"stages", "eval"} | ({"task"} if key in ("self-refine", *VERIFIED) else set())
    apart |= {"rollout"} if key == "tree-alone" else set()
    assert found.model_dump(exclude=apart) == usual.model_dump(exclude=apart), "everything else is SCoRe's"


def test_self_refine_asks_the_base_for_feedback_before_the_tasks_own_instruction() -> None:
    revise = made("self-refine").task.revise
    assert revise == (UserTurn(FEEDBACK, Role.FEEDBACK), UserTurn("Correct any error. {prompt}"))
    assert sum(turn.role is Role.ATTEMPT for turn in Script(revise=revise or "").user_turns("1+1")) == 2


@pytest.mark.parametrize("key", VERIFIED)
def test_such_rows_ask_for_a_verdict_and_for_a_second_attempt_only_if_it_says_wrong(key: str) -> None:
    own = UserTurn(VERIFY_BY_DIGIT, Role.VERIFICATION, says_correct="0", says_wrong="1")
    assert made(key).task.revise == (own, UserTurn("Correct any error. {prompt}", when=Judgement.WRONG))
    given = made(key, task={**MINIATURE["task"], "name": "addition", "revise": "Look again."})
    general = UserTurn(VERIFY, Role.VERIFICATION)
    assert given.task.revise == (general, UserTurn(f"{SAID_WRONG}Look again.", when=Judgement.WRONG))


@pytest.mark.parametrize("key", VERIFIED)
def test_a_verified_row_without_room_for_a_group_is_refused(key: str) -> None:
    title = re.escape(KINDS[key].title)
    with pytest.raises(ConfigError, match=f"{title} cannot spend the 32 completions of a step on a group of 16"):
        made(key, rollout={"batch_size": 16, "group_size": 16})


def test_a_step_that_cannot_be_halved_is_refused() -> None:
    task = {**MINIATURE["task"], "name": "addition", "revise": [{"text": "Any error?", "role": "feedback"}, "Again."]}
    with pytest.raises(ConfigError, match="cannot divide the 36 completions of a step into as many attempts as verif"):
        made("self-verification", task=task, rollout={"batch_size": 12, "group_size": 4, "max_tokens": 4})


def test_the_rows_are_made_from_a_configuration_of_score_only() -> None:
    for stages, message in (
        ({"one": USUAL["score"]}, "one \\(2 turns\\)"),
        (stage2(bonus=0), "not SCoRe's"),
        ({"a": USUAL["score"], "b": USUAL["score"]}, "not SCoRe's"),
        (stage2(kl_coefs=({}, {})), "anchor `base`"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe.of(make_config({"stages": stages}))


def test_settings_that_rows_could_not_share_are_refused() -> None:
    for change in (
        {"optimizer": {"num_iterations": 2}},
        {"stages": {**USUAL, "score": {**USUAL["score"], "batch_size": 128}}},
        {"stages": {name: {**stage, "batch_size": 128} for name, stage in USUAL.items()}},
    ):
        with pytest.raises(ConfigError, match="same number of completions and take the same number of updates"):
            Recipe.of(make_config({"stages": USUAL, **change}))


def test_three_turns_that_cannot_cost_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match="exactly 128 completions in 4 steps with groups of 8"):
        made("three-turns", rollout={"batch_size": 16, "group_size": 8})


def test_the_built_in_demo_makes_every_row() -> None:
    recipe = Recipe.of(load_config("demo"))
    assert all(row.make(recipe) for row in ROWS)


def test_rows_replay_stored_first_attempts_where_they_can_be_revised() -> None:
    config = load_config("demo")
    settings = config.model_dump()
    settings["stages"]["score"]["replay"] = {"share": 0.5}
    made = {row.key: row.make(Recipe.of(make_config(settings))) for row in ROWS}
    last = {key: list(made[key].stages.values())[-1] for key in made if made[key].stages}
    replaying = {key for key, stage in last.items() if getattr(stage, "replay", None) is not None}
    assert {"score", "last-turn", "weighted-alone", "tree-alone", "pag"} <= replaying
    assert not replaying & {"single-turn", "offline", "thinktwice", "distilled", "self-verification", "star"}


def test_first_attempts_apart_train_each_turn_on_its_own_half() -> None:
    """In each group of 4, the base made the first attempt of two episodes: only they train the second attempt."""
    stage = {**USUAL["score"], "offline_share": 0.5, "offline_apart": True}
    config = make_config({**MINIATURE, "stages": {"stage": stage}})
    trainer = Trainer(
        config,
        "stage",
        policy=tiny_model(0),
        references={"base": tiny_model(1)},
        problems=[problem(f"p{i}", f"{i}+{i}=") for i in range(10)],
        chat=ChatFormat(make_tokenizer(), Script(revise="2=")),
        verifier=FunctionVerifier(lambda p, text: len(text) % 2 == 1),
    )
    batch = trainer.pack_rollout(trainer.sampler.sample(trainer.state.step))
    assert batch.online_NK.tolist() == [[False, True], [False, True], [True, False], [True, False]] * 4
    advantages_NK = trainer.advantages(batch)
    assert torch.equal(advantages_NK != 0, (advantages_NK != 0) & batch.online_NK)
    assert (advantages_NK[:, 0] != 0).any() and (advantages_NK[:, 1] != 0).any()


# ---------------------------------------------------------------- one budget


@pytest.mark.slow
def test_every_trained_row_samples_and_updates_as_often_as_score(finished: Path, rows: tuple[MethodRow, ...]) -> None:
    for key in [row.key for row in rows if row.key in TRAINED]:
        metrics = read_jsonl(finished / key / "seed-0/metrics.jsonl")
        sampled = sum(line["completions"] for line in metrics)
        if key == "self-rewarding":  # a batch of at most 2 completions an episode, one of none, three of at most 3
            assert sampled == sum(line["completions"] for line in metrics[:1] + metrics[2:]) <= 16 * 2 + 3 * 8 * 3
            rest = [round(8 * (3 - line["skipped_t2"])) for line in metrics[2:]]
            assert [line["completions"] for line in metrics] == [round(16 * (2 - metrics[0]["r1"])), 0, *rest]
        elif key in VERIFIED:
            assert sampled == sum(round(8 * (3 - line["skipped_t2"])) for line in metrics) <= TEXTS * 3 / 4
        else:
            assert sampled == TEXTS, key
        assert sum(line["updates"] for line in metrics) == STEPS, key
        if key in ("single-turn", "self-verification", "thinktwice"):
            assert [line["completions"] for line in metrics] == [32] * 4, "twice the episodes of one attempt"


def test_the_table_counts_them(finished: Path) -> None:
    methods = tables(finished)["methods"]
    assert methods.columns[5:9] == ["tokens per problem", "completions", "updates", "sampled tokens"]
    spent = {row.label: [cell.value for cell in row.cells[6:8]] for row in methods.rows}
    assert spent["SCoRe"] == spent["STaR, D+"] == ["128", "4"] and spent["base"] == spent["Self-Refine"] == ["0", "0"]


# ---------------------------------------------------------------- what is shared


def test_stages_that_rows_share_are_one_cell_of_each_seed(tmp_path: Path) -> None:
    specs = plan(make_config({**MINIATURE, "task": {"name": "addition"}}), ROWS, [0, 1], tmp_path)
    shared = [spec for spec in specs if spec.path.parent.name == ".shared" and spec.config.seed == 0]
    # Stage I, trees' base, whose groups are larger, Stage I with adaptive beta2, the base of the rows with a verification,
    # self-rewarding's first stage, and three turns' base and two early stages
    assert [list(spec.config.stages) for spec in shared] == [
        ["stage1"],
        [],
        ["stage1"],
        [],
        ["ift"],
        [],
        ["stage1a"],
        ["stage1a", "stage1b"],
    ]
    users = [spec.path.parent.name for spec in specs if spec.parent == shared[0].path]
    assert users == [
        "score", "no-bonus", "star-stage2", "offline", "weighted", "discount-1", "discount-0.8", "offline-mix",
    ]  # fmt: skip
    assert shared[0].parent == tmp_path / "base/seed-0"
    assert len(specs) == 2 * (len(ROWS) + 8) == len({spec.path for spec in specs})
    for spec in specs:
        assert spec.parent is None or spec.parent in [c.path for c in specs[: specs.index(spec)]]


def test_a_run_that_went_on_from_a_shared_stage_has_the_bits_of_one_that_did_not(
    place: Path, finished: Path, tmp_path: Path
) -> None:
    config = load_config(finished / "no-bonus/seed-0/config.toml")
    whole = train(config, tmp_path / "whole")
    out = finished / "no-bonus/seed-0"
    assert json.loads((out / "summary.json").read_text())["results"] == whole.json["results"]
    files = ["metrics.jsonl", *(f"checkpoints/{name}/model.safetensors" for name in ("base", "stage1", "score"))]
    files += [f"episodes/{path.name}" for path in (out / "episodes").iterdir()]
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_only_the_beginning_of_a_run_can_be_gone_on_from(finished: Path, tmp_path: Path) -> None:
    score = load_config(finished / "score/seed-0/config.toml")
    with pytest.raises(ConfigError, match="cannot be forked"):
        fork(finished / "star+/seed-0", score, tmp_path / "out")
    with pytest.raises(ConfigError, match="not finished"):
        fork(tmp_path, score, tmp_path / "out")
    with pytest.raises(RunDirectoryError, match="holds another run"):
        fork(finished / "base/seed-0", score, finished / "star+/seed-0")
    assert list(config_prefix(score, 1).stages) == ["stage1"] and config_prefix(score, 2) == score


# ---------------------------------------------------------------- going on


def test_a_stopped_cell_goes_on_and_ends_with_the_same_bits(
    place: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = plan(miniature(place), chosen_rows(["star+"]), [0], tmp_path)

    class After:
        """An event that is set once it has been checked ``count`` times."""

        def __init__(self, count: int) -> None:
            self.count = count

        def is_set(self) -> bool:
            self.count -= 1
            return self.count < 0

    asked = 0
    for spec in specs:
        while not spec.finished:
            monkeypatch.setattr(work._Worker, "stopping", After(7))
            asked += 1
            work.finish(spec)
    assert asked > len(specs)
    for log in ("metrics.jsonl", "episodes/eval-star-attempts.jsonl", "checkpoints/star/model.safetensors"):
        assert (specs[-1].path / log).read_bytes() == (finished / "star+/seed-0" / log).read_bytes()


@pytest.mark.slow
@pytest.mark.pitfall(14)
def test_a_killed_cell_goes_on_and_ends_with_the_same_bits(place: Path, finished: Path, tmp_path: Path) -> None:
    """A process of its own is killed after its first steps; this one resumes from what it saved.

    It is not forked, because a fork loses the threads of this one in whatever state they are.
    """
    *before, spec = plan(miniature(place), chosen_rows(["no-stage1"]), [0], tmp_path)
    for one in before:
        assert work.finish(one).error is None
    process = multiprocessing.get_context("spawn").Process(target=finish_until_killed, args=(spec, 3))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not spec.finished and work.finish(spec).error is None and spec.finished
    for log in ("metrics.jsonl", "episodes/eval-score-attempts.jsonl", "checkpoints/score/model.safetensors"):
        assert (spec.path / log).read_bytes() == (finished / "no-stage1/seed-0" / log).read_bytes()


@pytest.mark.nightly  # every change: `test_from_outside.py` runs the command, whose worker is another process
def test_other_processes_do_the_work_once(place: Path, tmp_path: Path) -> None:
    specs = plan(miniature(place), chosen_rows(["base"]), [0], tmp_path)
    (done,) = work.work_through(specs, workers=1)
    assert done.error is None and done.job == specs[0] and specs[0].finished
    assert work.work_through(specs, workers=1) == [], "what is finished is kept"


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use threads instead of processes, which take seconds to start."""

    @contextmanager
    def pool(workers: int, processes: int) -> Iterator[Any]:
        with ThreadPoolExecutor(workers) as executor:
            yield executor, threading.Event()

    for module in (work, cost):
        monkeypatch.setattr(module, "pool", pool)


@pytest.mark.usefixtures("threads")
def test_a_failure_takes_its_followers_only(place: Path, tmp_path: Path) -> None:
    good = plan(miniature(place), chosen_rows(["base", "star"]), [0], tmp_path)
    broken = make_config({**good[0].config.model_dump(), "model": {"source": str(tmp_path / "nothing")}})
    bad = RunSpec("bad", broken, tmp_path / "bad", None)
    after = RunSpec("after", broken, tmp_path / "after", bad.path)
    ended = {done.job.name: done.error for done in work.work_through([bad, after, *good], workers=1)}
    assert ended["star, seed 0"] is None and good[-1].finished
    assert "no model directory" in str(ended["bad"])
    assert ended["after"] == "not started: it depends on bad"


@pytest.mark.usefixtures("threads")
def test_whatever_goes_wrong_in_a_run_the_others_stand(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good,) = plan(miniature(place), chosen_rows(["base"]), [0], tmp_path)

    class Broken(RunSpec):
        def finish(self, callbacks: Callbacks) -> None:
            raise RuntimeError("out of memory")

    broken = Broken("broken", good.config, tmp_path / "broken", None)
    ended = {done.job.name: done.error for done in work.work_through([broken, good], workers=1)}
    assert ended == {"broken": "RuntimeError: out of memory", good.name: None}


@pytest.mark.usefixtures("threads")
def test_a_stop_ends_the_work_with_how_to_go_on(place: Path, tmp_path: Path) -> None:
    specs = plan(miniature(place), chosen_rows(["base", "star"]), [0], tmp_path)
    with pytest.raises(InterruptedRun, match="Resume with the same command") as stopped:
        work.work_through(specs, workers=1, should_stop=lambda: 2)
    assert stopped.value.exit_status == 130 and not specs[-1].started


@pytest.mark.usefixtures("threads")
def test_a_stop_does_not_begin_what_waits(place: Path, tmp_path: Path) -> None:
    specs = plan(miniature(place), chosen_rows(["star"]), range(4), tmp_path)[-4:]
    waiting = [RunSpec(spec.name, spec.config, spec.path, None) for spec in specs]
    with pytest.raises(InterruptedRun):
        work.work_through(waiting, workers=1, should_stop=lambda: 2)
    assert sum(spec.started for spec in waiting) <= 2  # of 4


def test_a_directory_with_other_settings_is_refused(place: Path, finished: Path, rows: tuple[MethodRow, ...]) -> None:
    other = make_config({**miniature(place).model_dump(), "optimizer": {"learning_rate": 1e-3}})
    with pytest.raises(ConfigError, match="settings differ"):
        check_specs(plan(other, rows, [0], finished))
    check_specs(plan(miniature(place), rows, [0, 1], finished))


def test_more_attempts_and_many_samples_of_some_rows_are_measured_once(
    finished: Path, rows: tuple[MethodRow, ...], place: Path, tmp_path: Path
) -> None:
    specs = plan(miniature(place), rows, [0, 1], finished)
    wanted = extra_evaluations(specs, finished)
    places = [f"{row}-{kind}/seed-0" for row in ("base", "score", "three-turns") for kind in ("attempts", "samples")]
    places += ["single-turn-samples/seed-0"] if "single-turn" in {row.key for row in rows} else []
    assert [w.path.relative_to(finished / "further").as_posix() for w in wanted] == places
    assert not extra_evaluations(plan(miniature(place), rows, [1], finished), finished)  # not finished
    for one in wanted[2:4]:
        assert not one.finished and work.finish(one).error is None and one.finished
    attempts, samples = (json.loads((one.path / "summary.json").read_text())["results"]["model"] for one in wanted[2:4])
    assert len(attempts["turns"]) == 7  # what the context of 256 holds
    (wanted[2].path / "summary.json").unlink()  # as if it had stopped before its end
    assert work.finish(wanted[2]).error is None
    assert samples["samples"] == 32
    assert pack(finished, tmp_path / "small", episodes=1).directories >= len(rows) + 2
    packed = tmp_path / "small/further/score-samples/seed-0/episodes/eval-attempts.jsonl.gz"
    assert gzip.decompress(packed.read_bytes()).count(b"\n") == 32
    contents = read_report([finished])
    ids = {figure.id for figure in episode_figures(contents.rows)}
    assert {"more_attempts", "votes"} <= ids


# ---------------------------------------------------------------- the same trials for every row


def grid(*texts: str) -> Grid:
    return Grid.of(texts or ["optimizer.learning_rate=1e-4,1e-3"], seed=100, problems=7)


def test_every_trained_row_gets_every_point_of_the_grid_on_development_problems(place: Path, tmp_path: Path) -> None:
    found = trials(
        miniature(place), ROWS, grid("optimizer.learning_rate=1e-4,1e-3", "rollout.temperature=1.0"), tmp_path
    )
    anchored = {
        "score",
        "single-turn",
        "weighted-alone",
        "fitted-alone",
        "tree-alone",
        "distilled",
        "self-verification",
    }
    assert [t.row.key for t in found] == [key for key in TRAINED for _ in range(6 if key in anchored else 2)]
    assert {tuple(t.point) for t in found if t.row.key not in anchored} == {
        ("optimizer.learning_rate=1e-4", "rollout.temperature=1.0"),
        ("optimizer.learning_rate=1e-3", "rollout.temperature=1.0"),
    }
    assert len({trial.spec.path for trial in found}) == len(found)
    for trial in found:
        made = trial.spec.config
        assert (made.seed, made.eval.split, made.eval.problems, made.eval.controls) == (100, "dev", 7, False)
        assert f"optimizer.learning_rate={made.optimizer.learning_rate:.0e}".replace("e-0", "e-") == trial.point[0]


def test_an_anchored_row_also_tries_weaker_anchors_of_its_first_attempt(place: Path, tmp_path: Path) -> None:
    config = miniature(place)
    held = [turn["base"] for turn in config.stages["score"].kl_coefs]  # type: ignore[union-attr]
    for row, length in zip(chosen_rows(["score", "single-turn"]), (2, 1), strict=True):
        found = trials(config, [row], grid(), tmp_path)
        coefficients = [[turn["base"] for turn in t.spec.config.stages["score"].kl_coefs] for t in found]  # type: ignore[union-attr]
        wanted = [[round(held[0] * multiple, 9), *held[1:]] for multiple in (1, 0.1, 0.01) for _ in range(2)]
        assert coefficients == [turns[:length] for turns in wanted]
        assert [t.spec.config.optimizer.learning_rate for t in found] == [1e-4, 1e-3] * 3


def test_single_turn_is_settled_by_its_first_attempt(place: Path, tmp_path: Path) -> None:
    found = trials(miniature(place), chosen_rows(["single-turn", "last-turn"]), grid(), tmp_path)
    for trial in found:
        first = {"0": 0.3, "1": 0.2}.get(trial.spec.path.name, 0.1)
        figures = {"acc_t1": first, "acc_t2": 0.5 - first, "delta": 0.0}
        result = {f"{name}{end}": x for name, value in figures.items() for end, x in (("", value), ("_ci95", [0, 1]))}
        trial.spec.path.mkdir(parents=True)
        (trial.spec.path / "summary.json").write_text(json.dumps({"results": {"last": result}}))
    low, high = ["optimizer.learning_rate=1e-4"], ["optimizer.learning_rate=1e-3"]
    assert settle(found, grid(), tmp_path) == {"single-turn": low, "last-turn": high}
    (note,) = trial_table(read_trials(tmp_path)).notes
    assert "the settings of its highest Acc@t2 (Single-turn RL: Acc@t1)" in note


def test_each_row_is_settled_by_its_own_best_trial(place: Path, tmp_path: Path) -> None:
    rows = chosen_rows(["discount-1", "star", "no-bonus"])
    found = trials(miniature(place), rows, grid(), tmp_path)
    figures = {
        ("discount-1", 0): 0.5,
        ("discount-1", 1): 0.5,
        ("star", 0): 0.25,
        ("star", 1): 0.75,
        ("no-bonus", 1): 0.1,
    }
    for trial in found:
        acc = figures.get((trial.row.key, int(trial.spec.path.name)))
        if acc is not None:
            trial.spec.path.mkdir(parents=True)
            result = {
                f"{name}{end}": x for name in ("acc_t1", "acc_t2", "delta") for end, x in (("", acc), ("_ci95", [0, 1]))
            }
            (trial.spec.path / "summary.json").write_text(json.dumps({"results": {"base": {}, "last": result}}))
    low, high = ["optimizer.learning_rate=1e-4"], ["optimizer.learning_rate=1e-3"]
    assert settle(found, grid(), tmp_path) == {"discount-1": low, "star": high, "no-bonus": high}
    assert settled_before(tmp_path) == {"discount-1": low, "star": high, "no-bonus": high}
    specs = {spec.name: spec.config for spec in plan(miniature(place), rows, [0], tmp_path, settled_before(tmp_path))}
    assert (
        specs["star, seed 0"].optimizer.learning_rate == 1e-3
        and specs["discount-1, seed 0"].optimizer.learning_rate == 1e-4
    )
    assert "stage1 of no-bonus, seed 0" in specs, "another rate, so another Stage I"
    told = read_trials(tmp_path)
    table = {row.label: [cell.value for cell in row.cells] for row in trial_table(told).rows}
    assert table["STaR, D: optimizer.learning_rate=1e-3"] == ["75.0", "75.0", "+75.0", "yes"]
    assert table["Without the bonus: optimizer.learning_rate=1e-4"] == ["–", "–", "–", "failed"]
    assert len(table) == 6
    settle([trial for trial in found if trial.row.key == "star"], grid(), tmp_path)
    assert settled_before(tmp_path) == {"discount-1": low, "star": high, "no-bonus": high}, "other rows' trials stay"
    check_trials(grid(), tmp_path)
    with pytest.raises(ConfigError, match="holds trials with seed = 100 instead of 7: give the same --tune-seed"):
        check_trials(Grid.of(["optimizer.learning_rate=1e-4,1e-3"], seed=7, problems=7), tmp_path)


def test_votes_of_a_single_turn_model_are_measured_too(tmp_path: Path) -> None:
    config = make_config({**MINIATURE, "task": {"name": "addition"}})
    specs = plan(config, chosen_rows(["single-turn", "last-turn"]), [0], tmp_path)
    (found,) = extra_evaluations(specs, tmp_path, planned=True)
    assert found.path == tmp_path / "further/single-turn-samples/seed-0"
    assert (found.arguments["samples"], found.arguments["temperature"]) == (32, 0.7)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_the_command_tries_first_and_goes_on_from_there(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "paper",
        "miniature.toml",
        "--only",
        "star",
        "--seeds",
        "1",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--tune", "optimizer.learning_rate=1e-4,1e-2", "--tune-problems", "5"]
    assert main(command) == 0
    assert "Sweep of settings" in (tmp_path / "out/report.html").read_text()
    told = read_trials(tmp_path / "out")
    chosen = next(t["settings"] for t in told["rows"]["star"] if t["chosen"])
    rate = load_config(tmp_path / "out/star/seed-0/config.toml").optimizer.learning_rate
    assert chosen == [f"optimizer.learning_rate={rate:.0e}".replace("e-0", "e-")]
    provenance = json.loads((tmp_path / "out/.trials/star/0/summary.json").read_text())
    assert provenance["results"]["star"]["n"] == 5
    episodes = (tmp_path / "out/.trials/star/0/episodes/eval-star-attempts.jsonl").read_text().splitlines()
    dev = [
        p.id for p in RowsTask.problems(get_task("jsonl", miniature(place).task.options), Split.DEV, seed=0, limit=5)
    ]
    assert [json.loads(line)["problem_id"] for line in episodes] == dev
    capsys.readouterr()
    assert main([*command, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 0

    # Another machine that has the trials' results runs another seed, and repeats no trial.
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "out/trials.json", other)
    command[command.index("--out") + 1] = str(other)
    command[command.index("--seeds") + 1] = "1-1"
    assert main([*command, "--dry-run", "--json"]) == 0
    assert [cell["name"] for cell in json.loads(capsys.readouterr().out)["cells"]] == [
        "base of star, seed 1",
        "star, seed 1",
    ]
    assert main(command) == 0
    assert load_config(other / "star/seed-1/config.toml").optimizer.learning_rate == rate
    assert not (other / ".trials").exists()

    # Trials of other settings, or of a larger grid, do not count.
    for change in (["--set", "stages.score.steps=7"], ["--tune", "optimizer.max_grad_norm=1,2"]):
        capsys.readouterr()
        assert main([*command, *change, "--out", str(tmp_path / "third"), "--dry-run", "--json"]) == 0
        first = len(json.loads(capsys.readouterr().out)["cells"])
        (tmp_path / "third").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "out/trials.json", tmp_path / "third")
        assert main([*command, *change, "--out", str(tmp_path / "third"), "--dry-run", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["cells"]) == first > 2
        (tmp_path / "third/trials.json").unlink()


# ---------------------------------------------------------------- time


def test_prices_are_those_of_the_steps_taken(tmp_path: Path, finished: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "score/seed-0", run)
    lines = [{"generate": 3.2, "reference": 0.4, "learn": 1.0, "update": 0.2, "stage": "x", "step": 1}] * 4
    (run / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((run / "summary.json").read_text())
    # 6 problems, greedy and sampled with 2 attempts each, a second one at a swapped draft, and a first one resampled
    summary["seconds"] = {"evaluate base": 99.0, "evaluate score": 3.6}
    (run / "summary.json").write_text(json.dumps(sealed(run, summary)))
    throughput = measured([tmp_path / "nothing", run])
    assert throughput is not None and evaluated_completions(load_config(run / "config.toml")) == 36
    assert (throughput.sample, throughput.learn, throughput.fit, throughput.evaluate) == pytest.approx(
        (0.1, 0.05, 0.05, 0.1)
    )
    shutil.copytree(finished / "pair-sft/seed-0", tmp_path / "supervised")
    lines = [{"generate": 3.2, "stage": "x", "step": 1}] * 4 + [
        {"learn": 0.6, "update": 0.04, "stage": "x", "step": 1}
    ] * 4
    (tmp_path / "supervised/timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    both = measured([run, tmp_path / "supervised"])
    assert both is not None and (both.sample, both.learn, both.fit) == pytest.approx((0.1, 0.05, 0.02))


def test_the_time_left_counts_what_is_not_done_yet(place: Path, tmp_path: Path) -> None:
    throughput = Throughput(sample=0.1, learn=0.05, fit=0.03, evaluate=0.1)
    specs = plan(miniature(place), chosen_rows(["score", "star"]), [0], tmp_path)
    left = {spec.name: throughput.of(spec) for spec in specs}
    # a step of RL: 32 completions at 0.15 s; a step of STaR, half of which sample and half learn: 32 at 0.065 s
    expected = {"base of star, seed 0": 3.6, "star, seed 0": 8 * 2.08 + 3.6, "stage1 of score, seed 0": 4.8 + 3.6}
    assert left == pytest.approx({**expected, "score, seed 0": 3 * 4.8 + 3.6})


def test_verifications_cost_time_like_attempts(place: Path, tmp_path: Path) -> None:
    throughput = Throughput(sample=0.1, learn=0.05, fit=0.03, evaluate=0.1)
    specs = plan(miniature(place), chosen_rows(["pag"]), [0], tmp_path)
    spec = next(spec for spec in specs if spec.name == "pag, seed 0")
    (stage,) = spec.config.stages.values()
    episodes = spec.config.batch_size(stage)
    # attempt, verification, attempt; evaluated: 3 turns greedy and sampled, 2 at a swapped draft, 1 resampled
    assert throughput.step(spec.config, stage) == pytest.approx(episodes * 3 * 0.15)
    assert evaluated_completions(spec.config) == 6 * (3 + 3 + 2 + 1)
    assert throughput.of(spec) == pytest.approx(stage.steps * episodes * 3 * 0.15 + 54 * 0.1)
    (base,) = plan(miniature(place), chosen_rows(["self-refine"]), [0], tmp_path)
    assert evaluated_completions(base.config) == 54, "feedback counts, too"


def test_steps_that_alternate_cost_one_attempt_an_episode(place: Path, tmp_path: Path) -> None:
    throughput = Throughput(sample=0.1, learn=0.05, fit=0.03, evaluate=0.1)
    specs = plan(miniature(place), chosen_rows(["thinktwice"]), [0], tmp_path)
    spec = next(spec for spec in specs if spec.name == "thinktwice, seed 0")
    assert throughput.step(spec.config, spec.config.stages["thinktwice"]) == pytest.approx(32 * 0.15)


def test_an_attempt_and_a_verification_of_a_draft_cost_as_much_as_two_attempts(place: Path, tmp_path: Path) -> None:
    throughput = Throughput(sample=0.1, learn=0.05, fit=0.03, evaluate=0.1)
    specs = plan(miniature(place), chosen_rows(["self-verification"]), [0], tmp_path)
    spec = next(spec for spec in specs if spec.name == "self-verification, seed 0")
    assert throughput.step(spec.config, spec.config.stages["self_verification"]) == pytest.approx(16 * 2 * 0.15)


def test_the_cost_of_all_rows_counts_shared_stages_once(place: Path, tmp_path: Path) -> None:
    config, cluster, lengths = miniature(place), Cluster(1), Lengths(50, 10)
    shape = ModelShape.of(config)

    def found(*keys: str, further: bool = False) -> ComparisonCost:
        specs = plan(config, chosen_rows(keys), [0], tmp_path)
        extra = extra_evaluations(specs, tmp_path, planned=True) if further else []
        return comparison_cost(specs, extra, shape, cluster, lengths)

    score, both = found("score"), found("score", "no-bonus")
    run = estimate(config, shape, cluster, lengths).times
    steps = [stage.steps for stage in config.stages.values()]
    assert (score.runs, score.trained) == (3, sum(steps) * 32)
    looks = score.evaluated - 3 * 36
    assert looks >= 0 and score.hours * 3600 == pytest.approx(run.run_s, rel=0.05), "the base's look is in neither"
    assert (both.runs, both.trained) == (4, score.trained + steps[1] * 32), "Stage I is shared"
    more = found("score", further=True)
    # 10 attempts at 6 problems; 32 samples of 2 attempts
    assert (more.extra_evaluations, more.evaluated) == (2, score.evaluated + 6 * 10 + 6 * 32 * 2)
    assert more.hours > score.hours


def test_plan_tells_the_cost_of_the_comparison(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mini.toml").write_text(to_toml(miniature(place)))
    assert (
        main(["plan", str(place / "mini.toml"), "--gpus", "1", "--prompt-tokens", "16", "--paper", "--seeds", "2"]) == 0
    )
    out = capsys.readouterr().out
    assert "All rows of the paper's comparison, estimates as above: " in out and "sampled tokens" in out
    assert (
        main(
            [
                "plan",
                str(place / "mini.toml"),
                "--gpus",
                "1",
                "--prompt-tokens",
                "16",
                "--paper",
                "--seeds",
                "2",
                "--json",
            ]
        )
        == 0
    )
    of_rows = json.loads(capsys.readouterr().out)["paper"]
    assert of_rows["runs"] == 2 * len(plan(miniature(place), ROWS, [0], place)) and of_rows["trained"] > 0


# ---------------------------------------------------------------- the report, and the small copy of it


def tables(folder: Path) -> dict[str, Any]:
    return {table.id: table for table in result_tables(read_report([folder]).rows.rows)}


def test_the_report_has_the_papers_tables_in_the_papers_order(finished: Path, rows: tuple[MethodRow, ...]) -> None:
    found = tables(finished)
    papers = {
        "base": "base", "self-refine": "Self-Refine", "star": "STaR, D", "star+": "STaR, D+",
        "pair-sft": "Pair-SFT, D", "pair-sft+": "Pair-SFT, D+", "score": "SCoRe",
    }  # fmt: skip
    there = {row.key for row in rows}
    assert [row.label for row in found["methods"].rows] == [papers[key] for key in papers if key in there]
    assert [row.label for row in found["ablations"].rows] == [
        "base", "SCoRe", *(row.title for row in rows if row.table == "ablations"),
    ]  # fmt: skip
    assert [row.label for row in found["variants"].rows][2:] == [r.title for r in rows if r.table == "variants"]
    beside = {row.label: [cell.value for cell in row.cells[-3:]] for row in found["ablations"].rows}
    assert beside["Without Stage I"] == ["59.2", "61.4", "+2.2"]
    assert beside.get("Last-turn RL", ["–"] * 3) == ["–"] * 3
    assert {row.label for row in found["controls"].rows} >= {row.title for row in rows if row.key != "base"}


def test_the_small_copy_makes_the_same_tables(finished: Path, rows: tuple[MethodRow, ...], tmp_path: Path) -> None:
    done = pack(finished, tmp_path / "small", episodes=2)
    assert done.directories >= len(rows) and done.size < 1_000_000
    again = (tmp_path / "small/again.sh").read_text().splitlines()
    assert len(again) == done.directories + 1
    assert f"selfcorrect train {tmp_path}/small/star+/seed-0/config.toml --out again/star+/seed-0" in again
    assert tables(tmp_path / "small") == tables(finished)
    run = tmp_path / "small/star+/seed-0"
    assert sorted(p.name for p in run.iterdir()) == ["config.toml", "episodes", "metrics.jsonl.gz", "summary.json"]
    episodes = gzip.decompress((run / "episodes/eval-star-attempts.jsonl.gz").read_bytes()).splitlines()
    assert len(episodes) == 2
    with pytest.raises(ModelError, match=r"which keeps no models\. Train it again: selfcorrect train"):
        model_path(str(run))
    with pytest.raises(ConfigError, match="lies in"):
        pack(finished, finished / "small")


# ---------------------------------------------------------------- the command


def command_of(finished: Path, rows: tuple[MethodRow, ...], seeds: int) -> list[str]:
    only = ",".join(row.key for row in rows)
    return ["paper", "miniature.toml", "--only", only, "--out", str(finished), "--seeds", str(seeds)]


def further_names(rows: tuple[MethodRow, ...]) -> list[str]:
    """Return the names of the further evaluations of these rows."""
    both = [f"{kind} of {row}, seed 0" for row in ("base", "score", "three-turns") for kind in ("attempts", "samples")]
    return both + ["samples of single-turn, seed 0"] * any(row.key == "single-turn" for row in rows)


def test_the_command_lists_prints_and_plans(
    place: Path, finished: Path, rows: tuple[MethodRow, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["paper", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [row.key for row in ROWS]
    assert main(["paper", "miniature.toml", "--print", "weighted"]) == 0
    (tmp_path / "row.toml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "row.toml").stages["score"].reward_weights == (1, 5)
    assert main([*command_of(finished, rows, 2), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    states = [cell["finished"] for cell in told["cells"]]
    cells = len(plan(miniature(place), rows, [0], finished))
    names = further_names(rows)
    assert states[: -len(names)] == [True] * cells + [False] * cells
    assert [cell["name"] for cell in told["cells"][-len(names) :]] == names
    assert told["seconds"] > 0
    assert main([*command_of(finished, rows, 2), "--dry-run", "--json", "--no-further"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == told["cells"][: -len(names)]
    assert (
        main(["paper", "miniature.toml", "--out", str(finished), "--seeds", "2", "--only", "base,star+", "--dry-run"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["base, seed 0: finished", "star+, seed 0: finished"]
    assert re.fullmatch(r"base, seed 1: to evaluate, \d+ s left", lines[2])
    assert re.fullmatch(r"star\+, seed 1: 0 of 8 steps done, \d+ s left", lines[3])


@pytest.mark.usefixtures("threads")
def test_trial_steps_are_announced_and_their_warnings_are_no_news(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    changes = ["--set", "rollout.gap_warning=1e-12"]  # every step of a run warns
    words = ["paper", "miniature.toml", "--only", "base", "--seeds", "1", "--out", str(tmp_path / "out"), *changes]
    with caplog.at_level("WARNING", logger="selfcorrect"):
        assert main([*words, "--dry-run", "--no-further"]) == 0
    told = capsys.readouterr()
    assert "timing 3 trial steps of each stage" in told.err and "thrown away" in told.err
    assert "above rollout.gap_warning" not in caplog.text + told.err
    assert not (tmp_path / "out").exists()


def test_runs_that_share_a_gpu_go_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_command, "usable_cores", lambda: 32)
    settings = load_config("demo")
    for gpu, processes, expected in ((True, 1, 1), (False, 1, 32), (False, 4, 8)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=gpu: there)
        assert paper_command._workers(settings, processes) == expected


def test_a_run_has_its_part_of_the_usable_cores_and_no_more_threads_than_were_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert [work._threads(processes) for processes in (1, 3, 16)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert work._threads(1) == 1


@pytest.mark.usefixtures("threads")
def test_the_command_finishes_with_the_tables_and_the_report(
    finished: Path, rows: tuple[MethodRow, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command_of(finished, rows, 1), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "ablations (Table 4)" in out and "Wilson" in out and "report.html" in out
    assert (finished / "report.html").stat().st_size > 100_000
    assert main(["pack", str(finished), "--out", str(tmp_path / "packed"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["directories"] == len(rows) + len(further_names(rows))


def test_mistakes_of_the_command_line_are_one_message(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["miniature.toml", "--only", "scor", "--out", "x"], "unknown row 'scor': the rows are base,"),
        (["miniature.toml"], "give --out DIR"),
        (["--out", "x"], "give CONFIG"),
        (["miniature.toml", "--out", "x", "--tune", "optimizer.learning_rate"], "write KEY=VALUE,VALUE"),
        (
            ["miniature.toml", "--out", "x", "--tune", "a=1", "--tune-seed", "4"],
            "--tune-seed 4 must be above all seeds of the comparison",
        ),
        (["miniature.toml", "--out", "x", "--seeds", "two"], "--seeds two: give how many"),
        (["miniature.toml", "--out", "x", "--seeds", "0"], "--seeds 0: give how many"),
        (["miniature.toml", "--out", "x", "--seeds", "3-2"], "--seeds 3-2 names no seed"),
        (["miniature.toml", "--out", "x", "--seeds", "1-2,2"], "names a seed twice"),
        (["three_turns", "--out", "x"], "a SCoRe configuration"),
        (["miniature.toml", "--out", "x", "--processes", "0"], "'--processes'"),
        (
            [
                "miniature.toml",
                "--out",
                "x",
                "--processes",
                "2",
                "--set",
                "rollout.engine=support.outside_engine:ALONE_KIND",
            ],
            "engine = 'support.outside_engine:ALONE_KIND' runs in one process, but 2 are to share the work",
        ),
    ):
        assert main(["paper", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (place / "x").exists()


def test_a_row_that_fails_is_told_and_the_others_stand(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(specs: Any, **more: Any) -> list[work.Done]:
        if not isinstance(specs[0], RunSpec):
            return []
        shutil.copytree(finished / "base/seed-0", specs[0].path)
        return [work.Done(specs[0], 1.0), work.Done(specs[1], 1.0, "no episode gave a pair")]

    monkeypatch.setattr(work, "work_through", stand_in)
    assert main(["paper", "miniature.toml", "--only", "base,star", "--out", str(tmp_path), "--seeds", "1"]) == 1
    told = capsys.readouterr()
    assert "failed or could not begin: 1; all others are finished. The first, star, seed 0: no" in told.err
    assert "no episode gave a pair" in told.err and "base" in told.out
    assert TrainingError.exit_status == 1 and Callbacks().should_stop() is None
