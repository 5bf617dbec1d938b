"""A whole run: what its directory holds, going on with it, making it longer, refusing what cannot be."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SETTINGS
from support.models import tiny_model

from selfcorrect import evaluate
from selfcorrect.config.digest import config_digest
from selfcorrect.config.schema import Config, ModelConfig
from selfcorrect.config.toml import load_config
from selfcorrect.errors import CheckpointError, ConfigError, DataError, InterruptedRun, ModelError, RunDirectoryError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.models.language_model import load_model
from selfcorrect.paper.plan import digest
from selfcorrect.runs.looks import Looks
from selfcorrect.runs.run import _Run, resume, train
from selfcorrect.script import Script
from selfcorrect.storage.files import read_jsonl
from selfcorrect.storage.run_dir import RunDirectory
from selfcorrect.storage.seal import unseal
from selfcorrect.tasks import get_task
from selfcorrect.training.trainer import Trainer
from selfcorrect.zoo import registry
from selfcorrect.zoo import resolve as models
from selfcorrect.zoo.addition import AdditionBase
from selfcorrect.zoo.resolve import model_path, named_run

pytestmark = pytest.mark.usefixtures("lenient")
SMALL = [*SETTINGS, "log.episodes_every=2", "optimizer.schedule=constant"]


def config(model_folder: Path, *more: str) -> Config:
    return load_config("demo", [*SMALL, f"model.source={model_folder}", *more])


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(config(model_folder), out)
    return out


def test_a_run_directory_holds_the_run(finished: Path) -> None:
    assert load_config(finished / "config.toml").stages["score"].steps == 4
    metrics = read_jsonl(finished / "metrics.jsonl")
    expected = [("stage1", 1), ("stage1", 2), ("stage1", 3), ("score", 1), ("score", 2), ("score", 3), ("score", 4)]
    assert [(m["stage"], m["step"]) for m in metrics] == expected
    assert [m["step"] for m in metrics if "dev" in m] == [2, 2, 4]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["schema"] == 1 and list(summary["results"]) == ["base", "stage1", "score"]
    assert Script(**summary["script"]) == get_task("addition").script
    tokens = [(m["tokens_t1"] + m["tokens_t2"]) * m["completions"] / 2 for m in metrics]
    assert [m["sampled_tokens"] for m in metrics] == pytest.approx(tokens, abs=1e-9)
    assert summary["sampled_tokens"] == sum(m["sampled_tokens"] for m in metrics) == round(sum(tokens))
    assert not list(finished.glob("*/**/summary.json"))
    for result in summary["results"].values():
        assert result["n"] == 6
        assert abs(result["delta"] - (result["i_to_c"] - result["c_to_i"])) < 1e-12
        assert set(result["controls"]) == {"draft_swap", "independent_resample"}
    episodes = read_jsonl(finished / "episodes/eval-score-attempts.jsonl")
    assert len(episodes) == 6 and {e["stage"] for e in episodes} == {"score"}
    assert set(episodes[0]) >= {"schema", "stage", "step", "problem_id", "sample", "prompt", "reference", "turns"}
    assert set(episodes[0]["turns"][0]) >= {"text", "tokens", "verdict", "extracted", "stop", "detail"}
    assert list((finished / "tensorboard").iterdir())


def test_a_model_never_takes_settings_from_the_current_directory(
    finished: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named_run(f"{finished}:stage1") == (finished, "stage1") and named_run(finished) == (finished, None)
    monkeypatch.chdir(finished)
    assert named_run(str(model_folder)) == (None, None) and named_run("addition-base") == (None, None)


def test_checkpoints_are_plain_directories_and_runs_are_models(finished: Path) -> None:
    assert model_path(str(finished)) == str(finished / "checkpoints/score")
    assert model_path(f"{finished}:stage1") == str(finished / "checkpoints/stage1")
    for name in ("base", "stage1", "score"):
        load_model(finished / "checkpoints" / name)
        assert not (finished / "checkpoints" / name / "trainer.pt").exists()
    with pytest.raises(ModelError, match="no stage 'stage3'; there are base, stage1, score"):
        model_path(f"{finished}:stage3")


def test_the_kept_model_has_the_highest_mean_reward_of_the_checkpoints(finished: Path) -> None:
    rewards = [m["reward"] for m in read_jsonl(finished / "metrics.jsonl") if m["stage"] == "score"]
    means = {step: sum(rewards[step - 2 : step]) / 2 for step in (2, 4)}
    best = max(means, key=lambda step: (means[step], -step))
    kept = load_model(finished / "checkpoints/score").digest()
    assert kept == load_model(finished / f"checkpoints/score-{best:06d}").digest()


@pytest.mark.slow
def test_stage_two_starts_from_the_kept_model_of_stage_one(model_folder: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing Stage II keeps the weights it starts from."""
    out = tmp_path / "run"
    train(config(model_folder, "stages.score.learning_rate=1e-30", "stages.stage1.learning_rate=1e-2"), out)
    assert load_model(out / "checkpoints/score").digest() == load_model(out / "checkpoints/stage1").digest()
    assert load_model(out / "checkpoints/base").digest() != load_model(out / "checkpoints/stage1").digest()


@pytest.mark.slow
def test_a_longer_run_equals_one_that_was_long_from_the_start(
    model_folder: Path, finished: Path, tmp_path: Path
) -> None:
    longer, whole = tmp_path / "longer", tmp_path / "whole"
    shutil.copytree(finished, longer)
    one = resume(longer, overrides=["stages.score.steps=6"])
    other = train(config(model_folder, "stages.score.steps=6"), whole)
    assert one.json["results"] == other.json["results"]
    assert (longer / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert load_model(longer / "checkpoints/score").digest() == load_model(whole / "checkpoints/score").digest()


@pytest.mark.slow
def test_a_longer_run_that_dies_before_its_end_is_not_taken_for_the_short_one(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last training step is saved, but what would be its kept model is still that of the short run."""
    monkeypatch.setattr(Trainer, "selection_metric", lambda self: float(self.state.step))  # the last one is kept
    steps: list[int] = []
    callbacks = Callbacks(
        on_step=lambda r: steps.append(r.metrics["step"]), should_stop=lambda: 15 if steps and steps[-1] == 6 else None
    )
    more = ["stages.score.steps=6", "optimizer.learning_rate=3e-2"]
    train(config(model_folder, more[1]), tmp_path / "short")
    with pytest.raises(InterruptedRun):
        resume(tmp_path / "short", overrides=more[:1], callbacks=callbacks)
    one, other = resume(tmp_path / "short"), train(config(model_folder, *more), tmp_path / "whole")
    assert one.json["results"] == other.json["results"]
    kept = [load_model(tmp_path / run / "checkpoints/score").digest() for run in ("short", "whole")]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_run_that_ended_between_two_checkpoints_cannot_be_longer(model_folder: Path, tmp_path: Path) -> None:
    train(config(model_folder, "stages.score.steps=3"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"ended after 3 steps, which is not a multiple of log\.save_every = 2"):
        resume(tmp_path / "run", overrides=["stages.score.steps=6"])


def test_a_lost_log_is_reported(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"metrics\.jsonl is missing"):
        resume(tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 0 bytes, but had"):
        resume(tmp_path / "run")


def test_a_finished_run_keeps_its_provenance(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/summary.json"
    unseal(tmp_path / "run")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 0, "elsewhere": 1'))
    assert resume(tmp_path / "run").json["provenance"]["elsewhere"] == 1
    assert "elsewhere" in path.read_text()


def test_options_without_order_and_with_nulls_can_be_gone_on_with(model_folder: Path, tmp_path: Path) -> None:
    options = {"last": {"deep": 1}, "digits": 1, "nothing": None}
    given = config(model_folder)
    given = given.model_copy(update={"vllm": given.vllm.model_copy(update={"options": options})})
    steps: list[int] = []
    callbacks = Callbacks(on_step=lambda r: steps.append(1), should_stop=lambda: 15 if len(steps) == 2 else None)
    with pytest.raises(InterruptedRun):
        train(given, tmp_path / "run", callbacks=callbacks)
    resume(tmp_path / "run")


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_if_undisturbed(
    model_folder: Path, finished: Path, tmp_path: Path
) -> None:
    out, steps = tmp_path / "run", []
    callbacks = Callbacks(
        on_step=lambda r: steps.append(r.metrics["step"]), should_stop=lambda: 15 if len(steps) == 4 else None
    )
    with pytest.raises(InterruptedRun, match=f"--resume {out}") as stopped:
        train(config(model_folder), out, callbacks=callbacks)
    assert stopped.value.exit_status == 143
    resume(out)
    for log in ("metrics.jsonl", "episodes/train-score.jsonl", "episodes/eval-score-sampled.jsonl"):
        assert (out / log).read_bytes() == (finished / log).read_bytes()


@pytest.mark.parametrize(("owner", "last"), [(_Run, "evaluate"), (Looks, "look_at_base"), (_Run, "trainer")])
def test_a_stop_before_a_stage_is_obeyed_before_its_first_step(
    owner: type, last: str, model_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while ``last`` is at work, the last part that is run before the stop."""
    work, began, steps, out = getattr(owner, last), [], [], tmp_path / "run"

    def begin(self: Any, *arguments: Any) -> Any:
        found = work(self, *arguments) if last != "look_at_base" else None
        began.append(last)
        return found if last != "look_at_base" else work(self, *arguments)

    monkeypatch.setattr(owner, last, begin)
    callbacks = Callbacks(on_step=steps.append, should_stop=lambda: 15 if began else None)
    with pytest.raises(InterruptedRun, match=f"--resume {out}"):
        train(config(model_folder), out, callbacks=callbacks)
    assert (began, steps) == ([last], [])
    monkeypatch.undo()
    resume(out)
    for log in ("metrics.jsonl", "episodes/eval-base-attempts.jsonl", "episodes/eval-score-sampled.jsonl"):
        assert (out / log).read_bytes() == (finished / log).read_bytes()


def test_live_models_are_taken_and_left_alone(finished: Path, tmp_path: Path) -> None:
    lm = tiny_model(3, dtype=torch.float32)
    before = lm.digest()
    lm.model.train()
    summary = train(load_config("demo", SMALL), tmp_path / "run", model=lm.model, tokenizer=lm.tokenizer)
    assert lm.digest() == before and lm.model.training
    reference = json.loads((finished / "summary.json").read_text())["results"]
    assert summary.json["results"] == reference
    assert list(summary.to_pandas().index) == ["base", "stage1", "score"]


@pytest.mark.slow
def test_a_live_model_is_computed_as_the_settings_say(tmp_path: Path) -> None:
    """In a resumed run it comes from the checkpoint in the settings' number format; so it does from the beginning."""
    lm = tiny_model(3, dtype=torch.bfloat16)
    train(load_config("demo", SMALL), tmp_path / "whole", model=lm.model, tokenizer=lm.tokenizer)
    steps: list[int] = []
    callbacks = Callbacks(on_step=lambda r: steps.append(1), should_stop=lambda: 15 if len(steps) == 5 else None)
    with pytest.raises(InterruptedRun):
        train(load_config("demo", SMALL), tmp_path / "cut", model=lm.model, tokenizer=lm.tokenizer, callbacks=callbacks)
    resume(tmp_path / "cut")
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert lm.model.dtype == torch.bfloat16


def test_a_longer_run_is_the_only_change_that_resuming_takes(finished: Path) -> None:
    for change in ("rollout.batch_size=16", "stages.stage1.steps=9", "stages.score.steps=2", "seed=1"):
        with pytest.raises(ConfigError, match="can only lengthen"):
            resume(finished, overrides=[change])


def test_what_cannot_be_is_refused_before_anything_is_written(
    model_folder: Path, finished: Path, tmp_path: Path
) -> None:
    before = sorted(p.name for p in finished.iterdir())
    with pytest.raises(RunDirectoryError, match="holds another run"):
        train(config(model_folder), finished)
    assert sorted(p.name for p in finished.iterdir()) == before
    with pytest.raises(ConfigError, match="the model's context is"):
        train(config(model_folder, "rollout.max_tokens=4000"), tmp_path / "long")
    with pytest.raises(RunDirectoryError, match="is not a run"):
        resume(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write"):
        train(config(model_folder), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rollout.max_tokens=4000", "the model's context is 512"),
        ("task.revise='Unknown words. {prompt}'", None),
        ("model.device=tpu", "model.device = 'tpu'"),
        ("log.wandb=project", "log.trackers = wandb needs wandb"),
        ("model.lora={}", "LoRA needs peft"),
    ],
)
def test_what_is_wrong_is_refused_before_a_base_is_trained(
    change: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFCORRECT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("selfcorrect.zoo.resolve.made_model", _never)
    for package in ("wandb", "peft"):
        monkeypatch.setitem(sys.modules, package, None)
    settings = load_config("demo", [*SMALL, "model.seed=0", change])
    with pytest.raises(ConfigError if words else _Training, match=words):
        train(settings, tmp_path / "run")
    if "max_tokens" in change:
        with pytest.raises(ConfigError, match=words):
            evaluate("addition-base", "addition", limit=4, max_tokens=4000)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        pytest.param(*item, marks=[pytest.mark.slow] if item[0] == "micro-code-base" else [])
        for item in registry.RECIPES.items()
    ],
)
def test_the_card_of_a_base_that_is_to_be_trained_is_the_trained_ones(
    name: str, recipe: type[registry.Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFCORRECT_HOME", str(tmp_path))
    settings = ModelConfig(source=name)
    card = models.foreseen(settings, seed=3)
    short = {"patience": 1, "cooldown": 1} if name == registry.ADDITION_BASE else {"steps": 1}
    place = registry.made_model(name, 3, recipe=replace(recipe(), **short), out=tmp_path / "made")
    made = load_model(place)
    assert card is not None and card.context_limit == made.context_limit
    assert card.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert card.tokenizer.chat_template == made.tokenizer.chat_template
    assert models.foreseen(ModelConfig(source=str(place)), seed=3) is None
    shutil.copytree(place, registry.cached_place(name, 3, recipe()))
    assert models.foreseen(settings, seed=3) is None, "nothing has to be trained"


@pytest.mark.parametrize("cached", [True, False])
def test_what_the_tokenizer_decides_is_checked_once(
    cached: bool, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFCORRECT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("selfcorrect.zoo.resolve.made_model", lambda *_, **__: model_folder)
    settings = load_config("demo", [*SMALL, "model.seed=0"])
    if cached:
        shutil.copytree(model_folder, registry.cached_place("addition-base", 0, AdditionBase()))
    assert (models.foreseen(settings.model, seed=0) is None) == cached
    checked = []
    monkeypatch.setattr("selfcorrect.runs.checks.check_context", lambda *given: checked.append(given) or 60)
    monkeypatch.setattr("selfcorrect.runs.run.SharedRunDirectory.create", _never)
    with pytest.raises(_Training):
        train(settings, tmp_path / "run")
    assert len(checked) == 1


class _Training(Exception):
    """Raised where the base would be trained."""


def _never(*_: object, **__: object) -> None:
    raise _Training


def test_checkpoints_of_other_settings_and_damaged_ones_are_refused(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    settings = (other / "config.toml").read_text()
    (other / "config.toml").write_text(settings.replace("seed = 0", "seed = 7", 1))
    with pytest.raises(DataError, match=r"config\.toml is damaged: it differs from the seal"):
        resume(other)
    (other / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="other settings"):
        resume(other)
    torn = tmp_path / "torn"
    shutil.copytree(finished, torn)
    weights = max((torn / "checkpoints").glob("score-*")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        resume(torn)


def test_a_run_is_for_one_process(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def open_again(_: object) -> None:
        with pytest.raises(RunDirectoryError, match="in use by another process"):
            resume(out)

    train(config(model_folder), out, callbacks=Callbacks(on_step=open_again))


def test_how_processes_work_together_is_no_part_of_the_digest() -> None:
    plain, sharded = (
        load_config("demo", changes) for changes in ((), ["distributed.shard=true", "distributed.timeout_s=60"])
    )
    assert plain != sharded and config_digest(plain) == config_digest(sharded) and digest(plain) == digest(sharded)


def test_later_settings_leave_the_digest_of_a_run_that_began_without_them() -> None:
    """The value is the digest of these settings in the version before trees and looks with a limit."""
    before = "765a150ad8ffbe90ee9dcc15e682b43c3986ae5eccff100b207cf62d79424102"
    assert config_digest(load_config("demo")) == before
    assert digest(load_config("demo")) == "901951c625732b1e", (
        "the directory of a shared stage, and a trial in trials.json"
    )
    for change in (
        "stages.score.revisions=2",
        "stages.score.max_gen_batches=2",
        "eval.dev_limit=7",
        "log.stop_if_worse=true",
    ):
        assert config_digest(load_config("demo", [change])) != before
        assert digest(load_config("demo", [change])) != digest(load_config("demo"))
    weighted = load_config("demo", ["optimizer.tis_cap=2"])
    ahead = load_config("demo", ["optimizer.tis_cap=2", "rollout.ahead=1"])
    assert config_digest(ahead) != config_digest(weighted) and digest(ahead) != digest(weighted)


def test_a_longer_stage_forgets_its_own_evaluation_alone(tmp_path: Path) -> None:
    """The stages `score-2` and `score`: the one's files begin with the other's name."""
    with contextlib.closing(RunDirectory.create(tmp_path / "run", "")) as run:
        names = [
            f"eval-{stage}-{part}.jsonl" for stage in ("score-2", "score") for part in ("attempts", "sampled", "swap")
        ]
        for name in names:
            (run.path / "episodes" / name).touch()
        run.forget_stage("score")
        assert sorted(file.name for file in (run.path / "episodes").iterdir()) == sorted(names[:3])
