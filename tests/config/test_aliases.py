"""Names of earlier versions are still read: settings, metrics, stored values."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from selfcorrect.config import aliases
from selfcorrect.config.toml import load_config, make_config, to_toml
from selfcorrect.errors import ConfigError
from selfcorrect.types import Outcome

RESULTS = Path(__file__).parents[2] / "results"
KEPT = sorted(RESULTS.rglob("config.toml"))
OLD = """
model = { fast = false, recompute_layers = true }
rollout = { max_rows = 3 }
[optimizer]
token_budget = 5
updates_per_rollout = 2
clip_norm = 0.5
clip_ratio = 0.1
importance_cap = 2.0
final_share = 0.2

[stages.one]
steps = 4
reward_weights = [1, 1]
anchors = [{ base = 0.1 }, {}]

[stages.two]
steps = 4
reward_weights = []
anchors = []
bonus = 0.0
supervised = { method = "star", rounds = 2, right_pairs = "all", learn = "both" }
"""
NEW = """
model = { cpu_kernels = false, gradient_checkpointing = true }
rollout = { max_num_seqs = 3 }
[optimizer]
micro_batch_tokens = 5
num_iterations = 2
max_grad_norm = 0.5
clip_epsilon = 0.1
tis_cap = 2.0
min_lr_ratio = 0.2

[stages.one]
steps = 4
reward_weights = [1, 1]
kl_coefs = [{ base = 0.1 }, {}]

[stages.two]
method = "star"
steps = 4
rounds = 2
correct_pairs = "all"
learn = "both"
"""


def test_old_names_of_settings_mean_the_same() -> None:
    config = make_config(tomllib.loads(OLD))
    assert config == make_config(tomllib.loads(NEW))
    assert aliases.current(tomllib.loads(to_toml(config))) == tomllib.loads(to_toml(config))


@pytest.mark.parametrize(
    ("changes", "trackers", "project"),
    [
        (["log.tensorboard=false"], (), "selfcorrect"),
        (["log.wandb=sums"], ("tensorboard", "wandb"), "sums"),
        (["log.tensorboard=false", "log.wandb=sums"], ("wandb",), "sums"),
        (['log.trackers=["mlflow"]', "log.tensorboard=true"], ("tensorboard", "mlflow"), "selfcorrect"),
        (['log.trackers=["wandb", "mlflow"]', "log.wandb=sums"], ("mlflow", "wandb"), "sums"),
        (["log.wandb=''"], ("tensorboard",), "selfcorrect"),
    ],
)
def test_the_two_trackers_of_earlier_versions(changes: list[str], trackers: tuple[str, ...], project: str) -> None:
    log = load_config("demo", changes).log
    assert (log.trackers, log.project) == (trackers, project)
    assert make_config({"log": {"tensorboard": True, "wandb": None}}).log == make_config({}).log


@pytest.mark.parametrize("change", ["log.tensorboard=3", "log.wandb=3"])
def test_a_wrong_value_under_an_old_name_is_refused(change: str) -> None:
    with pytest.raises(ConfigError, match=r"log\.(tensorboard|wandb): no such setting"):
        load_config("demo", [change])


def test_a_change_by_an_old_name_wins() -> None:
    config = load_config("demo", ["optimizer.clip_norm=0.25", "stages.score.anchors=[{base=0.5},{base=0.5}]"])
    assert config.optimizer.max_grad_norm == 0.25
    assert config.stages["score"].kl_coefs == ({"base": 0.5}, {"base": 0.5})


def test_old_metrics_and_values() -> None:
    assert aliases.metrics({"engine_gap": 1, "r1": 2}) == {"max_logprob_diff": 1, "r1": 2}
    assert (Outcome("right"), Outcome("wrong")) == (Outcome.CORRECT, Outcome.INCORRECT)
    assert Outcome.RIGHT is Outcome.CORRECT
    with pytest.raises(ValueError, match="'perhaps' is not a valid Outcome"):
        Outcome("perhaps")


@pytest.mark.skipif(not KEPT, reason="results/ is not here")
def test_every_kept_configuration_is_read() -> None:
    assert len(KEPT) > 150
    for path in KEPT:
        assert load_config(path).stages is not None
