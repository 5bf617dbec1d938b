"""What is passed on: episodes as a data set, models with their cards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.models import tiny_model
from support.stored_runs import record, write_evaluation, write_lines, write_run

from selfcorrect.cli.app import main
from selfcorrect.cli.progress import Lines
from selfcorrect.config.stage_labels import label_in
from selfcorrect.config.toml import load_config, to_toml
from selfcorrect.errors import DataError, ModelError, RunDirectoryError
from selfcorrect.models.language_model import load_model
from selfcorrect.models.lora import peft_package
from selfcorrect.report.episode_export import export_episodes
from selfcorrect.report.model_card import base_of_run, licence_of, model_card
from selfcorrect.report.model_export import export_model
from selfcorrect.report.sources import read_run
from selfcorrect.report.terminal import all_tables
from selfcorrect.script import Script
from selfcorrect.storage.run_dir import RunDirectory
from selfcorrect.tasks import get_task

CORRECTED, SPOILT = ("6", "7"), ("7", "")
HEAD = "---\n"


def stored(path: Path, *changes: str, licence: str | None = None) -> Path:
    """A finished run with a base of its own, whose card states a licence."""
    base = path.parent / "the-base"
    if not base.exists():
        tiny_model(1, dtype=torch.float32).save(base)
    if licence is not None:
        (base / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A base\n")
    models = {
        "base": [record(0, SPOILT, model="base"), record(1, ("7", "7"), model="base")],
        "score": [record(0, CORRECTED), record(1, ("0", "7"))],
    }
    write_run(path, seed=3, models=models, changes=[f"model.source={base}", *changes])
    write_lines(
        path / "episodes/train-stage1.jsonl", [record(5, CORRECTED, model="stage1", sample=s) for s in range(3)]
    )
    write_lines(path / "episodes/eval-score-swap.jsonl", [record(1, SPOILT)])
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return stored(tmp_path / "run", licence="MIT")


# ---------------------------------------------------------------- episodes


def loaded(folder: Path, cache: Path, *which: str) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(str(folder), *which, cache_dir=str(cache))


def test_datasets_reads_the_episodes_of_a_run(run: Path, tmp_path: Path) -> None:
    rows = export_episodes(run, tmp_path / "out")
    assert rows == {
        "attempts/base.parquet": 2,
        "attempts/score.parquet": 2,
        "swap/score.parquet": 1,
        "train/stage1.parquet": 3,
    }
    found = loaded(tmp_path / "out", tmp_path / "cache")  # the first configuration is the default
    assert {split: len(part) for split, part in found.items()} == {"base": 2, "score": 2}
    one = found["base"][0]
    assert (one["model"], one["problem_id"], one["prompt"], one["reference"]) == ("base", "p0", "problem 0: 3+4=", "7")
    assert one["correct"] == [True, False] and one["difficulty"] == "level 0"
    assert [turn["verdict"] for turn in one["turns"]] == ["correct", "no_answer"]
    assert one["turns"][0] == {
        "role": "attempt",
        "text": "7",
        "tokens": [1],
        "length": 1,
        "stop": "end",
        "verdict": "correct",
        "extracted": "7",
        "detail": "",
        "by_rule": [],
        "online": True,
    }
    assert [row["sample"] for row in loaded(tmp_path / "out", tmp_path / "cache", "train")["stage1"]] == [0, 1, 2]


def test_what_only_some_episodes_have_is_kept(tmp_path: Path) -> None:
    more = record(2, CORRECTED, model="", difficulty=None)
    more["turns"][1] |= {
        "by_rule": {"strict": "no_answer"},
        "asides": [{"text": "hm", "tokens": [], "token_count": 4, "stop": "end"}],
    }
    write_evaluation(tmp_path / "e", [record(1, CORRECTED), more], digest="d")
    assert export_episodes(tmp_path / "e", tmp_path / "out") == {"attempts/model.parquet": 2}
    one, two = loaded(tmp_path / "out", tmp_path / "cache", "attempts")["model"]
    assert one["difficulty"] == "level 1" and two["difficulty"] is None
    assert [(turn["role"], turn["verdict"], turn["length"]) for turn in two["turns"]] == [
        ("attempt", "incorrect", 1),
        ("feedback", None, 4),
        ("attempt", "correct", 1),
    ]
    assert two["correct"] == [False, True]
    assert two["turns"][2]["by_rule"] == [{"rule": "strict", "verdict": "no_answer"}]


def test_the_card_tells_of_every_column_and_file(run: Path, tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    export_episodes(run, tmp_path / "out")
    card = DatasetCard((tmp_path / "out/README.md").read_text())
    configs = {item["config_name"]: item["data_files"] for item in card.data.to_dict()["configs"]}
    assert [*configs] == ["attempts", "swap", "train"]
    for files in configs.values():
        assert all((tmp_path / "out" / file["path"]).is_file() for file in files)
    first = loaded(tmp_path / "out", tmp_path / "cache")["base"][0]
    assert all(f"| `{name}` |" in card.text for name in [*first, *first["turns"][0]])
    assert "with seed 3" in card.text and "`addition`" in card.text and "| `train` | `stage1` | 3 |" in card.text
    assert str(tmp_path) not in card.content.replace(str(tmp_path / "the-base"), ""), "no paths of this machine"


def test_stages_whose_names_no_split_can_bear_keep_apart(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / "episodes").mkdir(parents=True)
    changes = [
        "stages.a-b={steps=1,reward_weights=[1],kl_coefs=[{}]}",
        "stages.a_b={steps=1,reward_weights=[1],kl_coefs=[{}]}",
    ]
    (path / "config.toml").write_text(to_toml(load_config("demo", changes)))
    for number, name in enumerate(("a-b", "a_b")):
        write_lines(path / f"episodes/eval-{name}-attempts.jsonl", [record(number, ("7",), model=name)])
    assert len(export_episodes(path, tmp_path / "out")) == 2
    found = loaded(tmp_path / "out", tmp_path / "cache")
    assert sorted(row["model"] for part in found.values() for row in part) == ["a-b", "a_b"]


def test_many_episodes_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcorrect.report.episode_export.ROWS", 4)
    write_evaluation(tmp_path / "e", [record(i, CORRECTED) for i in range(10)], digest="d")
    assert export_episodes(tmp_path / "e", tmp_path / "out") == {"attempts/model.parquet": 10}
    found = loaded(tmp_path / "out", tmp_path / "cache")["model"]
    assert [row["problem_id"] for row in found] == [f"p{i}" for i in range(10)]


def test_an_export_of_episodes_appears_whole_or_not_at_all(run: Path, tmp_path: Path) -> None:
    damaged = run / "episodes/train-stage1.jsonl"
    damaged.write_text(damaged.read_text() + "{}\n")
    with pytest.raises(DataError, match=r"train-stage1\.jsonl, line 4"):
        export_episodes(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not [*tmp_path.glob(".out*")]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for place in ("taken", "taken/file", "link"):
        with pytest.raises(RunDirectoryError, match="exists and is not an empty directory"):
            export_episodes(tmp_path / "run", tmp_path / place)
    assert not (tmp_path / "elsewhere").exists()


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", [record(0, CORRECTED)], digest="d")
    (tmp_path / "out").mkdir()
    export_episodes(tmp_path / "e", tmp_path / "out")
    assert (tmp_path / "out/README.md").exists()


def test_the_command_exports_episodes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", "--episodes", "out"]) == 0
    assert capsys.readouterr().out == "out holds 8 episodes.\n"
    assert main(["export", "run", "--episodes", "other", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"]["train/stage1.parquet"] == 3


# ---------------------------------------------------------------- the card of a model


def parsed(card: str) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(card)


def test_the_card_has_the_figures_with_intervals_and_says_what_was_not_measured(run: Path) -> None:
    card = parsed(model_card(run, "score"))
    results = json.loads((run / "summary.json").read_text())["results"]
    assert all_tables({name: results[name] for name in ("base", "score")}) in card.text
    assert "[+9.5, +100.0]" in card.text or "95% confidence intervals" in card.text
    assert "Not measured: the controls and what delta is made of." in card.text
    figures = {item.metric_type: item.metric_value for item in card.data.eval_results}
    assert figures == {"acc_t1": 0.0, "acc_t2": 1.0, "delta": 1.0, "i_to_c": 1.0, "c_to_i": 0.0}
    assert card.data.license == "mit" and "states `mit`" in card.text
    assert {item.dataset_name for item in card.data.eval_results} == {"addition (test, 2 problems)"}


def test_the_card_of_the_last_model_says_that_the_run_ended_below_its_base(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "below_base": "The run ended below its base: so and so."}))
    assert "**The run ended below its base: so and so.**" in model_card(run, "score")
    assert "below its base" not in model_card(run, "stage1") + model_card(run, "base")


def test_controls_and_parts_of_delta_are_shown_where_they_were_measured(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    control = {
        "acc_t2": 1.0,
        "acc_t2_swapped": 0.5,
        "acc_t2_swapped_ci95": [0.1, 0.9],
        "n": 2,
        "i_to_c": 0.0,
        "c_to_i": 0.5,
    }
    control |= {"difference": -0.5, "difference_ci95": [-0.9, 0.125]}
    summary["results"]["score"]["controls"] = {"draft_swap": control}
    (run / "summary.json").write_text(json.dumps(summary))
    text = model_card(run, "score")
    assert "Control: draft swap" in text and "[-90.0, +12.5]" in text
    assert "Not measured: what delta is made of." in text


def test_the_card_says_how_the_model_was_trained(run: Path) -> None:
    text = model_card(run, "score")
    assert "Trained from `the-base` with `selfcorrect`" in text and "task `addition`" in text and "seed 3" in text
    assert text.index("- `stage1`: reinforcement learning") < text.index("- `score`: reinforcement learning")
    early = model_card(run, "stage1")
    assert "- `stage1`" in early and "- `score`" not in early and "None yet" in early
    assert "before any training" in model_card(run, "base")
    assert str(run.parent) not in text, "no paths of this machine"


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        (None, "on up to 20,000 problems of"),
        (3_000, "on 3,000 problems of"),
        (10_000, "on up to 10,000 problems of"),  # no stage asked for all of them
        (20_000, "on at most 10,880 of 20,000 problems of"),  # 100 steps and 240 of 256 / 8 problems
    ],
)
def test_the_card_has_the_number_of_training_problems(recorded: int | None, words: str, run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | ({"train_problems": recorded} if recorded else {})))
    assert words in model_card(run, "score")


def test_the_card_does_not_claim_problems_that_a_supervised_stage_may_have_left_out(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "train_problems": 20_000}))
    settings = (
        (run / "config.toml")
        .read_text()
        .replace("[stages.stage1]", "[stages.cold]\nmethod = 'sft'\nsteps = 2\n\n[stages.stage1]")
    )
    (run / "config.toml").write_text(settings)
    assert "- `cold`: supervised" in (text := model_card(run, "score")) and "on up to 20,000 problems of" in text


def test_the_card_has_the_prompts_of_the_training(run: Path) -> None:
    def shown(stage: str = "score") -> str:
        return model_card(run, stage).partition("\n## Prompts\n")[2].partition("\n## Figures\n")[0]

    own = get_task("addition").script
    settings = load_config(run / "config.toml")
    assert f"The first message of the user:\n\n```text\n{own.first}\n```" in shown(), "a run of an earlier version"
    assert f"Before every later attempt:\n\n```text\n{own.revise}\n```" in shown()
    assert f"at most {settings.rollout.max_tokens} tokens" in shown() and "system message" not in shown()
    script = Script("Write ```python: {prompt}", system="Be brief.").with_verification()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "script": script.to_json()}))
    assert "The system message:\n\n```text\nBe brief.\n```" in shown()
    assert "````text\nWrite ```python: {prompt}\n````" in shown(), "nothing in a message ends its block"
    verdict, attempt = script.later
    assert (
        f'For a verdict ("The answer is correct" or "The answer is wrong" is what counts):\n\n```text\n{verdict.text}'
        in shown()
    )
    assert f"Before every later attempt, if the verdict says wrong:\n\n```text\n{attempt.text}" in shown()
    assert "alone" not in shown()


def test_a_model_that_made_first_attempts_alone_is_named_so_in_its_card_and_its_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["stages.score.reward_weights=[1]", "stages.score.kl_coefs=[{ base = 0.1 }]", "stages.score.bonus=0"]
    run = stored(tmp_path / "run", *changes, licence="mit")
    alone = "trained on first attempts alone"
    assert alone not in model_card(run, "score"), "the stage before had two"
    settings = (run / "config.toml").read_text()
    before, _, rest = settings.partition("[stages.stage1]")
    (run / "config.toml").write_text(before + "[stages.score]" + rest.partition("[stages.score]")[2])
    card = model_card(run, "score")
    assert alone in card and "the-base: run, single-turn (score)" in card and "  single-turn (score) " in card
    assert main(["show", str(run)]) == 0
    assert "--- single-turn (score), step" in capsys.readouterr().out
    assert label_in(run, "score") == "single-turn (score)" and label_in(run, "base") == "base"
    assert label_in(run / "episodes", "score") == "score", "there are no settings"
    found = read_run(run)
    assert (found.label("score"), found.label("stage1"), found.label("base")) == (
        "single-turn (score)",
        "stage1",
        "base",
    )


def test_progress_names_a_stage_of_first_attempts(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines({"score": 5}, label="single-turn ({})".format)
    lines.on_step(SimpleNamespace(metrics={"stage": "score", "step": 1, "r1": 0.5}, seconds={}))
    assert "single-turn (score) 1/5: r1 0.500" in capsys.readouterr().err


def test_the_card_of_an_earlier_run_imports_no_code_for_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_strangers_module.py").write_text("def check(text, reference, row):\n    return True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = ["task.name=dataset", "task.options={ path = 'p.jsonl', verifier = 'a_strangers_module:check' }"]
    run = stored(tmp_path / "run", *changes, licence="mit")
    assert "## Prompts\n\nNot recorded" in model_card(run, "score")
    assert "a_strangers_module" not in sys.modules


@pytest.mark.parametrize(
    ("written", "licence"),
    [
        ("apache-2.0", "apache-2.0"),
        ("[mit, apache-2.0]", None),
        ("'a: b\\n# Free for all'", None),
        ("{x: 1}", None),
        ("[", None),
    ],
)
def test_a_licence_is_read_from_the_bases_own_card(written: str, licence: str | None, tmp_path: Path) -> None:
    path = stored(tmp_path / "run", licence=written)
    card = parsed(model_card(path, "score"))
    assert card.data.license == licence
    assert ("Unknown: the licence of the base `the-base`" in card.text) is (licence is None)
    assert "Free for all" not in card.content


def test_the_licence_of_what_ships_with_the_package_is_known_and_of_others_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert licence_of("addition-base") == licence_of("smollm2-135m") == "apache-2.0"
    assert licence_of("(live object)") is None and licence_of(str(tmp_path)) is None

    class Unreachable:
        def model_info(self, source: str, **how: object) -> None:
            raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi", Unreachable)
    assert licence_of("someone/model-nobody-has") is None


def test_a_run_that_began_with_another_runs_model_names_the_first_base(run: Path, tmp_path: Path) -> None:
    second = stored(tmp_path / "second", f"model.source={run}:stage1")
    assert base_of_run(second) == ("the-base", None, "mit")
    itself = stored(tmp_path / "third", f"model.source={tmp_path / 'third'}")
    assert base_of_run(itself).licence is None, "a circle ends"


def test_a_hub_id_is_named_as_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcorrect.report.model_card._stated_on_the_hub", lambda source: "llama3")
    card = parsed(model_card(stored(tmp_path / "run", "model.source=someone/Some-Model"), "score"))
    assert (card.data.base_model, card.data.license) == ("someone/Some-Model", "llama3")


# ---------------------------------------------------------------- models


@pytest.fixture
def checkpoints(run: Path) -> Iterator[Path]:
    directory = RunDirectory.open(run)
    for seed, name in enumerate(("base", "stage1", "score")):
        directory.save_checkpoint(name, tiny_model(seed, dtype=torch.float32).save)
    directory.close()
    yield run


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_model_is_exported_with_its_card(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoints), "--model", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    names = {file.name for file in (checkpoints / "checkpoints/score").iterdir()} - {"manifest.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | {"README.md"}
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (checkpoints / "checkpoints/score" / name).read_bytes()
    assert (tmp_path / "out/README.md").read_text() == model_card(checkpoints, "score")
    assert load_model(tmp_path / "out").digest() == load_model(checkpoints / "checkpoints/score").digest()


def test_a_stage_is_exported_with_another_dtype(checkpoints: Path, tmp_path: Path) -> None:
    export_model(f"{checkpoints}:stage1", tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert "stage1" in (tmp_path / "out/README.md").read_text()


def test_a_model_of_no_run_is_refused_and_nothing_is_left(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a run"):
        export_model(str(tmp_path / "the-base"), tmp_path / "out")
    with pytest.raises(ModelError, match="no stage 'other'"):
        export_model(f"{checkpoints}:other", tmp_path / "out")
    file = checkpoints / "checkpoints/score/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match="differs"):
        export_model(str(checkpoints), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not [*tmp_path.glob(".out*")]


def test_an_adapter_is_exported_merged_and_merging_writes_a_card(tmp_path: Path) -> None:
    peft_package()
    from selfcorrect.config.schema import LoRAConfig

    run = stored(tmp_path / "run", "model.lora={rank=2}", licence="mit")
    directory = RunDirectory.open(run)
    base = tiny_model(0, dtype=torch.float32)
    directory.save_checkpoint("base", base.save)
    policy = base.with_adapter("policy", LoRAConfig(rank=2), seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    policy.source = str(run / "checkpoints/base")
    directory.save_checkpoint("score", policy.save)
    directory.close()
    export_model(str(run), tmp_path / "out")
    assert main(["models", "merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    one, two, plain = (weights(folder) for folder in (tmp_path / "out", tmp_path / "merged", run / "checkpoints/base"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], plain[name]) for name in one)
    card = (tmp_path / "merged/README.md").read_text()
    assert card == (tmp_path / "out/README.md").read_text() and "LoRA adapters of rank 2" in card
