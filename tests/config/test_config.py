"""Settings: what is refused, with which words, and that the resolved configuration is the one in use."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from support.trainers import STAGE, make_trainer, settings

from selfcorrect.config.digest import config_digest
from selfcorrect.config.schema import Config, KLConfig
from selfcorrect.config.stages import SupervisedStage, score_stages
from selfcorrect.config.toml import builtin_configs, load_config, make_config, timeout_of, to_toml
from selfcorrect.distributed.world import TIMEOUT_S
from selfcorrect.errors import ConfigError


def refusal(table: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(table)
    return str(caught.value)


def with_stage(**stage: Any) -> dict[str, Any]:
    return {"stages": {"one": {**STAGE, **stage}}}


@pytest.mark.pitfall(17)
def test_a_built_in_configuration_may_be_named_like_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/demo.toml") == load_config("demo")
    for other in ("configs/none.toml", "mine/demo.toml", "demo.toml"):
        with pytest.raises(ConfigError, match="neither a file nor one of"):
            load_config(other)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.toml").write_text("seed = 7")
    assert load_config("configs/demo.toml").seed == 7


@pytest.mark.parametrize("name", builtin_configs())
def test_every_built_in_configuration_loads_and_survives_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert make_config(tomllib.loads(to_toml(config))) == config


@pytest.mark.pitfall(17)
def test_a_written_configuration_is_read_back_whole(tmp_path: Path) -> None:
    anchors, adaptive = [{"base": 0.1, "first": 0.2}, {}], {"turn": 1, "target": 2.5}
    table = {
        "seed": 3,
        "task": {"name": "addition", "options": {"digits": 3, "names": ["a", "b"]}, "revise": 'Say "no".\n'},
        "kl": {"placement": "loss", "estimator": "k3"},
        "stages": {"first": STAGE, "second": {**STAGE, "kl_coefs": anchors, "adaptive": adaptive}},
    }
    config = make_config(table)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config
    assert list(load_config(path).stages) == ["first", "second"]


@pytest.mark.pitfall(17)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"optimizer": {"maxgradnorm": 1}}, "optimizer.maxgradnorm: no such setting; did you mean 'max_grad_norm'?"),
        ({"rolout": {}}, "rolout: no such setting; did you mean 'rollout'?"),
        (with_stage(bonsu=3), "stages.one.bonsu: no such setting; did you mean 'bonus'?"),
        (with_stage(adaptive={"targte": 3}), "stages.one.adaptive.targte: no such setting; did you mean 'target'?"),
        ({"task": {"zzz": 1}}, "task.zzz: no such setting; there are name, options, "),
    ],
)
def test_an_unknown_setting_is_refused_with_a_suggestion(table: dict[str, Any], message: str) -> None:
    assert message in refusal(table)


@pytest.mark.pitfall(17)
def test_every_group_of_settings_refuses_unknown_names_and_changes() -> None:
    config = settings(stage={"adaptive": {}})
    groups = [config, *(value for _, value in config if isinstance(value, BaseModel)), config.stages["stage"]]
    groups += [config.stages["stage"].adaptive, SupervisedStage(method="star", steps=3)]
    assert len(groups) == 13
    for group in groups:
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(group).model_validate({**group.model_dump(), "no_such_setting": 1})
        with pytest.raises(ValidationError, match="frozen"):
            setattr(group, next(iter(type(group).model_fields)), 1)


@pytest.mark.pitfall(17)
def test_the_settings_given_are_the_ones_in_use() -> None:
    """A value of each number that steers a step reaches the object that uses it."""
    optimizer = {"learning_rate": 0.123, "betas": [0.5, 0.6], "epsilon": 1e-5, "weight_decay": 0.25}
    rollout = {"batch_size": 12, "group_size": 6, "temperature": 0.7, "max_tokens": 3, "max_num_seqs": 5}
    trainer = make_trainer(settings(optimizer=optimizer, rollout=rollout))
    (used,) = trainer.learner.optimizer.param_groups
    assert (used["lr"], used["betas"], used["eps"], used["weight_decay"]) == (0.123, (0.5, 0.6), 1e-5, 0.25)
    assert (trainer.sampler.sampling.temperature, trainer.sampler.sampling.max_tokens, trainer.engine.max_num_seqs) == (
        0.7,
        3,
        5,
    )
    episodes = trainer.sampler.sample(trainer.state.step)
    assert len(episodes) == 12
    assert len({episode.problem.id for episode in episodes}) == 2
    assert max(len(turn.ids) for episode in episodes for turn in episode.turns) == 3
    assert trainer.step().metrics["learning_rate"] == 0.123


@pytest.mark.pitfall(12)
@pytest.mark.parametrize(
    "table",
    [
        {"kl": {"placement": "reward", "estimator": "k3"}},
        {"kl": {"placement": "reward", "estimator": "full"}},
        {"kl": {"placement": "loss"}},
    ],
)
def test_kl_settings_that_would_do_nothing_or_be_ignored_are_refused(table: dict[str, Any]) -> None:
    assert "kl: estimator = " in refusal(table)


def test_all_errors_are_told_together() -> None:
    optimizer = {"learning_rate": -1, "clip": 2}
    message = refusal(
        {"optimizer": optimizer, "rollout": {"temperature": 0}, "model": {"dtype": "float8"}, "seed": "x"}
    )
    for part in (
        "learning_rate = -1",
        "clip: no such",
        "rollout.temperature = 0",
        "model.dtype = 'float8'",
        "seed = 'x'",
    ):
        assert part in message
    assert len(message.splitlines()) == 6


def test_inconsistencies_are_told_together() -> None:
    sizes = {"rollout": {"batch_size": 9, "group_size": 1}, "task": {"train_problems": 3}}
    message = refusal({**sizes, **with_stage(init="nowhere")})
    for part in ("rollout.group_size = 1", "task.train_problems = 3", "stages.one.init = 'nowhere'"):
        assert part in message


@pytest.mark.pitfall(3)
def test_a_group_of_one_is_refused_with_leave_one_out() -> None:
    table = {"rollout": {"batch_size": 8, "group_size": 1}, **with_stage()}
    assert "rollout.group_size = 1, but the leave-one-out baseline of stage 'one' needs at least 2" in refusal(table)
    make_config({**table, **with_stage(baseline="none")})
    several = refusal({**table, "stages": {"one": STAGE, "two": STAGE, "three": {**STAGE, "baseline": "none"}}})
    assert "of stages 'one', 'two' needs" in several and several.count("leave-one-out") == 1


def test_indivisible_sizes_are_refused_with_the_nearest_ones() -> None:
    message = refusal({"rollout": {"batch_size": 10, "group_size": 4}, **with_stage()})
    assert "rollout.batch_size = 10 episodes is not a multiple of rollout.group_size = 4" in message
    assert "batch_size = 8 or 12" in message


def test_offline_first_attempts_need_a_second_one() -> None:
    table = with_stage(reward_weights=[1], kl_coefs=[{"base": 0.1}], offline_share=0.25)
    assert "offline_share = 0.25 with one turn" in refusal(table)


def test_a_stage_never_takes_a_training_states_name() -> None:
    assert "stages.run-123456" in refusal({"stages": {"run-123456": {**STAGE}}})
    assert "stages.run-0" in refusal({"stages": {"run-0": {**STAGE}}})
    make_config({"stages": {"run-1": {**STAGE}, "run-12345": {**STAGE}}})


def test_a_lonely_online_first_attempt_is_refused() -> None:
    table = {"rollout": {"batch_size": 8, "group_size": 4}}
    assert "leaves 1 of 4 first attempts" in refusal({**table, **with_stage(offline_share=0.75)})
    for fine in (0.5, 1.0):
        make_config({**table, **with_stage(offline_share=fine)})


def test_trees_need_second_attempts_and_two_first_ones() -> None:
    assert "revisions = 2 with one turn" in refusal(
        with_stage(reward_weights=[1], kl_coefs=[{"base": 0.1}], revisions=2)
    )
    assert "revisions = 2 with offline_share = 0.5" in refusal(with_stage(revisions=2, offline_share=0.5))
    table = {"rollout": {"batch_size": 8, "group_size": 4}}
    for revisions in (3, 4):
        assert f"revisions = {revisions} with rollout.group_size = 4" in refusal(
            {**table, **with_stage(revisions=revisions)}
        )
    make_config({**table, **with_stage(revisions=2)})
    make_config({**table, **with_stage(revisions=4, baseline="none")})


def test_fewer_problems_than_a_step_needs_are_refused() -> None:
    message = refusal({"rollout": {"batch_size": 8, "group_size": 2}, "task": {"train_problems": 3}, **with_stage()})
    assert "task.train_problems = 3 is fewer than the 4 problems of a step" in message


@pytest.mark.parametrize("reference", ["nobody", "later", "one"])
def test_anchors_and_starts_name_the_base_or_an_earlier_stage(reference: str) -> None:
    stages = {"one": {**STAGE, "kl_coefs": [{reference: 0.1}, {}]}, "later": STAGE}
    assert f"kl_coefs: turn 1 names the reference {reference!r}; there are base" in refusal({"stages": stages})
    stages = {"one": {**STAGE, "init": reference}, "later": STAGE}
    assert f"stages.one.init = {reference!r}" in refusal({"stages": stages})
    make_config({"stages": {"one": STAGE, "later": {**STAGE, "kl_coefs": [{"one": 0.1}, {}], "init": "one"}}})


@pytest.mark.parametrize("name", ["base", "a b", "a/b", ""])
def test_names_that_cannot_be_a_stages_are_refused(name: str) -> None:
    assert f"stages.{name}" in refusal({"stages": {name: STAGE}})


def test_turns_of_rewards_and_anchors_must_agree() -> None:
    assert "reward_weights has 3 turns and kl_coefs has 2" in refusal(with_stage(reward_weights=[1, 1, 1]))


def test_adaptive_needs_the_anchor_it_controls() -> None:
    assert "has no such anchor" in refusal(with_stage(kl_coefs=[{}, {"base": 1}], adaptive={}))


@pytest.mark.parametrize("turn", [2, 3])
def test_adaptive_needs_a_turn_that_exists(turn: int) -> None:
    table = with_stage(kl_coefs=[{"base": 1}, {"base": 1}], adaptive={"turn": turn})
    if turn == 2:
        make_config(table)
    else:
        assert "adaptive controls 'base' on turn 3, which has no such anchor" in refusal(table)


def test_the_defaults_are_the_papers_two_stages() -> None:
    stages = score_stages()
    one, two = stages["stage1"], stages["score"]
    assert list(stages) == ["stage1", "score"]
    assert (one.reward_weights, one.bonus, one.discount) == ((0, 1), 0, 0)
    assert one.kl_coefs[0]["base"] == pytest.approx(0.11)
    assert one.kl_coefs[1] == {"base": 0.01}
    assert (two.reward_weights, two.bonus, two.discount) == ((1, 1), 10, 0)
    assert two.kl_coefs == ({"base": 0.01}, {"base": 0.01})
    assert {stage.baseline for stage in stages.values()} == {"rloo"}
    assert (KLConfig().placement, KLConfig().estimator) == ("reward", "k1")
    assert Config().optimizer.num_iterations == 1


def test_overrides_change_what_they_name() -> None:
    changes = ["seed=7", "optimizer.learning_rate=1e-2", "stages.score.bonus=0", "model.source=somewhere"]
    config = load_config("demo", changes)
    assert (config.seed, config.optimizer.learning_rate, config.model.source) == (7, 1e-2, "somewhere")
    assert config.stages["score"].bonus == 0
    assert config.stages["stage1"] == load_config("demo").stages["stage1"]


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (r"task.system=Be\nbrief.\t\boxed \\n", "Be\nbrief.\t\\boxed \\n"),
        (r"""task.system='Be\nbrief.'""", r"Be\nbrief."),
        (r'task.system="Be\nbrief."', "Be\nbrief."),
    ],
)
def test_a_text_given_on_the_command_line_has_the_escapes_of_stop(change: str, value: str) -> None:
    assert load_config("demo", [change]).task.system == value


def test_a_pattern_given_on_the_command_line_keeps_its_own_escapes() -> None:
    change = r"task.options.reference_pattern=\\boxed\{(.+)\}\n"
    assert load_config("demo", [change]).task.options["reference_pattern"] == change.partition("=")[2]


@pytest.mark.parametrize("override", ["seed", "=3", "seed.deep=3"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config("demo", ["seed=1", override])


def test_a_missing_file_and_bad_toml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'demo'"):
        load_config("dmo")
    bad = tmp_path / "bad.toml"
    bad.write_text("seed = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML.*line 1"):
        load_config(bad)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("# [task]\n# name = 'addition'\n", "has only comments"),
        ("[task]\n", "has only tables without settings"),
        ("[task]\n[model.lora]\n# rank = 8\n", "has only tables without settings"),
    ],
)
def test_a_file_that_sets_nothing_is_not_taken_as_the_defaults(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    for overrides in ([], ["seed=1"]):  # a change on the command line does not make the file less empty
        with pytest.raises(
            ConfigError, match=rf"mine\.toml sets nothing: it {why}.*selfcorrect config demo > mine\.toml"
        ):
            load_config(file, overrides)
    file.write_text(f"{text}\n[log]\nsave_every = 7\n")
    assert load_config(file).log.save_every == 7
    assert make_config({}) == Config()


def test_a_json_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"task": {"name": "addition"}}')
    with pytest.raises(ConfigError, match=r"mine\.json is not valid TOML.*It looks like JSON"):
        load_config(tmp_path / "mine.json")


def test_processes_know_how_long_to_wait_before_they_read_a_configuration_together(tmp_path: Path) -> None:
    stored = tmp_path / "config.toml"
    assert timeout_of("demo") == timeout_of(stored) == TIMEOUT_S, "a run that is not there is rejected later"
    stored.write_text("[distributed]\ntimeout_s = 60\n")
    assert (timeout_of(stored), timeout_of(stored, ["distributed.timeout_s=70"])) == (60, 70)
    stored.write_text("[distributed\n")
    assert timeout_of(stored) == TIMEOUT_S


def test_only_shards_are_saved_in_the_background() -> None:
    sharded = load_config("demo", ["distributed.shard=true", "distributed.async_save=true"])
    assert sharded.distributed.async_save
    assert config_digest(sharded) == config_digest(load_config("demo")), (
        "how processes work together is no setting of a run"
    )
    for words in ([], ["distributed.shard=true", "model.lora.rank=4"]):
        with pytest.raises(
            ConfigError, match=r"distributed\.async_save = true works for full training with distributed\.shard"
        ):
            load_config("demo", [*words, "distributed.async_save=true"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rollout = 3", r"- rollout = 3: it must be a table: \[rollout\]"),
        ("[[stages]]\nsteps = 3", r"- stages = \[\{'steps': 3\}\]: it must be a table: \[stages\.NAME\]"),
        ("[stages]\nscore = 3", r"- stages\.score = 3: it must be a table: \[stages\.score\]"),
        (
            "[stages.s]\nsteps = 1\nreward_weights = 1\nkl_coefs = []",
            r"reward_weights = 1: it must be a list, in square",
        ),
        (
            "[task]\nrevise = 3",
            r"- task\.revise = 3: Input should be a valid string\n  - task\.revise = 3: it must be a list",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_in_the_words_of_toml(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "mine.toml")
