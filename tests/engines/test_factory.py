"""Which engine a name opens; engines from outside the package; one engine for a whole run."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from support import outside_engine
from support.crash import SETTINGS
from support.models import tiny_model
from support.verifiers import lenient_additions

from selfcorrect.config import plugins
from selfcorrect.config.engine_names import ENGINES
from selfcorrect.config.toml import load_config
from selfcorrect.engines import EnginePool, EngineSettings, HFEngine, check_engine, open_engine, open_second_engine
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import load_model
from selfcorrect.runs.run import train

OUTSIDE = "support.outside_engine:open_outside"


@pytest.fixture(autouse=True)
def opened() -> list[outside_engine.OutsideEngine]:
    outside_engine.OPENED.clear()
    return outside_engine.OPENED


# ---------------------------------------------------------------- names


def test_built_in_engines_are_found() -> None:
    assert check_engine(EngineSettings("hf")).shares_weights
    engine = open_engine(EngineSettings("hf", max_num_seqs=7), tiny_model(0))
    assert isinstance(engine, HFEngine) and engine.max_num_seqs == 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vlm", r"rollout\.engine: there is no engine 'vlm'; there are hf, vllm, or .*Did you mean 'vllm'\?"),
        ("quite another", r"'module:attribute'\.$"),
        ("a:b:c", "there is no engine"),
    ],
)
def test_an_unknown_name_is_refused_where_a_configuration_is_read(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("demo", [f"rollout.engine={name}"])
    with pytest.raises(ConfigError, match=f"there is no engine {name!r}"):
        check_engine(EngineSettings(name))


def test_an_installed_package_can_offer_an_engine(monkeypatch: pytest.MonkeyPatch, opened) -> None:
    points = [
        EntryPoint("turbo", OUTSIDE, ENGINES.group),
        EntryPoint("hf", OUTSIDE, ENGINES.group),  # nobody can take the package's own names
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == ENGINES.group else [])
    assert load_config("demo", ["rollout.engine=turbo"]).rollout.engine == "turbo"
    with pytest.raises(ConfigError, match="Did you mean 'turbo'"):
        load_config("demo", ["rollout.engine=turbp"])
    assert open_engine(EngineSettings("turbo"), tiny_model(0)) is opened[0]
    assert isinstance(open_engine(EngineSettings("hf"), tiny_model(0)), HFEngine)


def test_checking_a_name_imports_no_engine() -> None:
    code = (
        "import sys\nfrom selfcorrect.config.toml import load_config\n"
        "load_config('demo', ['rollout.engine=vllm']); load_config('demo', ['rollout.engine=nowhere:nothing'])\n"
        "assert 'torch' not in sys.modules and 'selfcorrect.engines' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:attribute", "ModuleNotFoundError.*among the installed packages"),
        ("support.outside_engine:no_such_attribute", "AttributeError"),
        ("support.outside_engine:NOT_AN_ENGINE", "is int: name a function"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused_before_any_work(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcorrect.runs.run.get_task", None)
    with pytest.raises(ConfigError, match=words):
        train(load_config("demo", [f"rollout.engine={name}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_lacks_the_members_of_an_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="made a object, which has no generate, load_weights, close"):
        open_engine(EngineSettings("support.outside_engine:open_nothing"), tiny_model(0))


def test_a_module_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine_here.py").write_text("from support.outside_engine import open_outside as mine\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert isinstance(open_engine(EngineSettings("engine_here:mine"), tiny_model(0)), outside_engine.OutsideEngine)
    assert sys.path == before


# ---------------------------------------------------------------- settings


def test_an_engines_own_check_comes_before_the_model(tmp_path: Path) -> None:
    changes = ["rollout.engine=support.outside_engine:KIND", 'rollout.engine_options={speed="impossible"}']
    with pytest.raises(ConfigError, match="speed = 'impossible'"):
        train(load_config("demo", changes), tmp_path / "run")


def test_options_for_an_engine_of_the_package_are_refused() -> None:
    with pytest.raises(ConfigError, match="engine_options sets speed, but engine 'hf' takes no options"):
        check_engine(EngineSettings("hf", options={"speed": 1}))


# ---------------------------------------------------------------- one engine, many models


def test_a_pool_opens_an_engine_that_copies_weights_once(opened) -> None:
    pool = EnginePool(EngineSettings(OUTSIDE))
    one, two = tiny_model(0), tiny_model(1)
    first = pool.engine(one)
    assert pool.engine(two) is first is opened[0] and len(opened) == 1
    assert opened[0].loads == 1 and opened[0].inner.lm.digest() == two.digest()
    pool.close()
    assert opened[0].closed


def test_a_pool_opens_an_engine_that_shares_weights_for_each_model() -> None:
    pool = EnginePool(EngineSettings("hf"))
    one, two = (pool.engine(tiny_model(seed)) for seed in (0, 1))
    assert isinstance(one, HFEngine) and isinstance(two, HFEngine) and one.lm is not two.lm


def test_a_second_model_is_sampled_by_hf_where_the_first_ones_engine_copies_weights(opened) -> None:
    model = tiny_model(0)
    for name in (OUTSIDE, "hf"):
        second = open_second_engine(EngineSettings(name, max_num_seqs=3), model)
        assert isinstance(second, HFEngine) and second.lm is model and second.max_num_seqs == 3
    assert not opened


@pytest.mark.slow
def test_a_run_with_an_engine_from_outside_ends_with_the_bits_of_hf(tmp_path: Path, opened) -> None:
    """It samples what `hf` does as long as it gets the policy's weights after every step and each model's to evaluate."""
    tiny_model(3, dtype=torch.float32).save(tmp_path / "model")
    changes = [*SETTINGS, f"model.source={tmp_path / 'model'}", "log.tensorboard=false"]
    outside = [f"rollout.engine={OUTSIDE}", "rollout.engine_options={speed='high'}", "rollout.max_num_seqs=5"]
    with lenient_additions():
        train(load_config("demo", [*changes, "rollout.max_num_seqs=5"]), tmp_path / "hf")
        train(load_config("demo", [*changes, *outside]), tmp_path / "outside")
    runs = [tmp_path / name for name in ("hf", "outside")]
    assert load_model(runs[0] / "checkpoints/score").digest() == load_model(runs[1] / "checkpoints/score").digest()
    episodes = [(run / "episodes/eval-score-sampled.jsonl").read_bytes() for run in runs]
    assert episodes[0] == episodes[1]
    (engine,) = opened
    assert engine.closed and engine.settings.options == {"speed": "high"} and engine.settings.max_length
    assert engine.requests > 7 * 8 * 2  # all episodes of training, and the evaluations
