"""Test where problems come from: the hub's revisions, compressed files, and what is recorded of both."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.hub import SHA, FakeHub, loaded
from support.models import tiny_model
from support.sums import SUMS, write

from selfcorrect.cli.app import main
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.tasks.base import get_task, origin_of
from selfcorrect.tasks.code.data import read_rows
from selfcorrect.tasks.compressed import COMPRESSED
from selfcorrect.tasks.dataset.task import DatasetTask
from selfcorrect.tasks.math.task import MathTask
from selfcorrect.types import Split


def prompts(task: DatasetTask, split: Split = Split.TEST) -> list[str]:
    return sorted(problem.prompt for problem in task.problems(split, seed=0))


# --- the hub ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["v1.0", SHA, "refs/convert/parquet"])
def test_a_revision_is_asked_for_and_the_commit_behind_it_recorded(
    revision: str, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    rows = loaded(SUMS, "https://a.b/c", f"hf://datasets/a/sums@{SHA}/data/test.parquet")
    hub = FakeHub({"main": {"test": rows}})
    monkeypatch.setattr("selfcorrect.tasks.sources.require", lambda *_, **__: hub)
    task = DatasetTask(test_path=f"a/sums@{revision}", verifier="number")
    assert hub.asked == [("a/sums", revision)] * 2 and task.name == "a/sums"
    assert origin_of(task) == {"data_commits": {"a/sums": SHA}}
    narrow = DatasetTask(test_path=f"a/sums/main:test@{revision}", verifier="number")
    assert origin_of(narrow) == {"data_commits": {"a/sums": SHA}} and hub.asked[2:] == [("a/sums", revision)]
    monkeypatch.setattr("selfcorrect.tasks.code.data.require", lambda *_, **__: hub)
    for place in (f"a/sums@{revision}", f"a/sums/main:test@{revision}"):
        found = read_rows(place, "mbpp")
        assert (len(found.rows), found.commits) == (len(SUMS), {"a/sums": SHA})
    assert hub.asked[3:] == [("a/sums", revision)] * 2


@pytest.mark.parametrize(
    "file",
    ["hf://datasets/b/sums@" + SHA, "hf://datasets/a/sums@main/x", "/a/sums@" + SHA, f"hf://datasets/a/sums@{SHA}0"],
)
def test_a_commit_is_recorded_only_where_it_is_the_data_sets_own(
    file: str, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    hub = FakeHub({"main": {"test": loaded(SUMS, file)}})
    monkeypatch.setattr("selfcorrect.tasks.sources.require", lambda *_, **__: hub)
    assert origin_of(DatasetTask(test_path="a/sums", verifier="number")) == {}


def test_the_commits_of_all_places_are_recorded(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    write(here / "own.jsonl", SUMS[40:])
    hubs = {name: loaded(rows, f"hf://datasets/{name}@{sha}/x") for name, rows, sha in
            (("a/one", SUMS[:20], SHA), ("a/two", SUMS[20:40], SHA[::-1]))}  # fmt: skip
    splits = {"a/one": "train", "a/two": "train"}
    client = SimpleNamespace(
        get_dataset_config_names=lambda name, revision: ["main"],
        load_dataset=lambda name, config, split, revision: {splits[name]: hubs[name]},
    )
    monkeypatch.setattr("selfcorrect.tasks.sources.require", lambda *_, **__: client)
    task = DatasetTask(["a/one", "a/two"], "number", test_path="own.jsonl")
    assert origin_of(task) == {"data_commits": {"a/one": SHA, "a/two": SHA[::-1]}}
    splits["a/two"] = "test"
    problems = [{"problem": f"{n}?", "answer": f"{n}"} for n in range(40)]
    hubs["a/one"] = loaded(problems[:20], f"hf://datasets/a/one@{SHA}/x")
    hubs["a/two"] = loaded(problems[20:], f"hf://datasets/a/two@{SHA[::-1]}/x")
    assert origin_of(MathTask("a/one", "a/two")) == {"data_commits": {"a/one": SHA, "a/two": SHA[::-1]}}


@pytest.mark.slow
def test_runs_and_evaluations_record_where_their_problems_are_from(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(300)]
    write(here / "train.jsonl", rows[:200])
    tests = loaded(rows[190:], f"hf://datasets/a/sums@{SHA}/x")
    hub = FakeHub({"main": {"test": tests}})
    monkeypatch.setattr("selfcorrect.tasks.sources.require", lambda *_, **__: hub)
    tiny_model(1, dtype=torch.float32, spread=0.5).save(here / "model")
    options = {
        "path": "train.jsonl",
        "test_path": "a/sums",
        "verifier": "exact",
        "first": "{prompt}",
        "revise": "Correct any error.",
        "drop_repeated": True,
    }
    told = [f"--set=task.options.{name}={json.dumps(value)}" for name, value in options.items()]
    (here / "tiny.toml").write_text(
        'task = { name = "dataset" }\nmodel = { source = "model" }\n'
        "rollout = { batch_size = 8, group_size = 4, max_tokens = 6 }\neval = { problems = 10, dev_every = 0 }\n"
        "stages = { one = { steps = 1, reward_weights = [0, 1], kl_coefs = [{ base = 0.1 }, { base = 0.1 }] } }\n"
    )
    assert main(["train", "tiny.toml", "--out", "run", "--no-report", *told]) == 0
    assert "drop_repeated left out 10 problems that occur before (10 of train)" in capsys.readouterr().err
    given = [word for name, value in options.items() for word in ("--task-option", f"{name}={json.dumps(value)}")]
    given += ["--max-tokens", "6", "--limit", "5"]
    assert main(["eval", "--model", "model", "--task", "dataset", *given, "--out", "eval"]) == 0
    for place in ("run", "eval"):
        recorded = json.loads((here / place / "summary.json").read_text())["provenance"]
        assert recorded["data_commits"] == {"a/sums": SHA} and recorded["repeated_dropped"] == {"train": 10}, place
    capsys.readouterr()
    assert main(["rescore", "eval"]) == 0
    assert json.loads((here / "eval/summary.json").read_text())["provenance"]["data_commits"] == {"a/sums": SHA}
    assert main(["tasks", "check", "tiny.toml", "--show", "0", *told]) in (0, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "drop_repeated left out 10 problems that occur before (10 of train)" in shown
    assert f"a/sums at revision {SHA}" in shown


# --- compressed files -------------------------------------------------------------------------------

PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def packed(suffix: str, content: bytes) -> bytes:
    """Return compressed content, in two parts, as tools write that append."""
    pack = PACKERS.get(suffix) or pytest.importorskip("zstandard").ZstdCompressor().compress
    half = len(content) // 2
    return bytes(pack(content[:half]) + pack(content[half:]))


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("kind", ["sums.jsonl", "list.json", "sums.csv", "sums.parquet", "sums.arrow"])
def test_compressed_files_are_read_as_the_files_themselves(kind: str, suffix: str, here: Path) -> None:
    if kind.endswith("jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in SUMS).encode()
    elif kind.endswith("json"):
        content = json.dumps(SUMS).encode()
    elif kind.endswith("csv"):
        content = ("prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in SUMS)).encode()
    else:
        table = pytest.importorskip("datasets").Dataset.from_list(SUMS)
        if kind.endswith("parquet"):
            table.to_parquet("plain")
        else:
            table.save_to_disk("saved")
        (file,) = [Path("plain")] if kind.endswith("parquet") else Path("saved").glob("*.arrow")
        content = file.read_bytes()
    (here / kind).write_bytes(content)
    (here / f"{kind}{suffix}").write_bytes(packed(suffix, content))
    plain, same = (DatasetTask(test_path=name, verifier="number") for name in (kind, f"{kind}{suffix}"))
    assert prompts(plain) == prompts(same) and len(prompts(same)) == len(SUMS)


def test_the_task_jsonl_reads_compressed_files_too(here: Path) -> None:
    (here / "sums.jsonl.gz").write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in SUMS)))
    (here / "mine.py").write_text("def check(text, reference, row):\n    return text == reference\n")
    task = get_task("jsonl", {"test_path": "sums.jsonl.gz", "verifier": "mine:check"})
    assert len(task.problems(Split.TEST, seed=0)) == len(SUMS)


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_damaged_or_endless_compressed_file_is_refused(
    suffix: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packed(suffix, b"".join(json.dumps(row).encode() + b"\n" for row in SUMS))
    for name, content in (
        ("torn", whole[: len(whole) // 4]),
        ("other", b"no archive"),
        ("noise", whole[:4] + whole[9:]),
    ):
        (here / f"{name}.jsonl{suffix}").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.jsonl{suffix} cannot be unpacked|there is no row|not JSON"):
            DatasetTask(test_path=f"{name}.jsonl{suffix}", verifier="number")
    monkeypatch.setattr("selfcorrect.tasks.compressed.MAX_UNPACKED", 3 * 2**20)
    (here / f"bomb.jsonl{suffix}").write_bytes(packed(suffix, b" " * 2**23))
    with pytest.raises(DataError, match=rf"bomb.jsonl{suffix} unpacks to more than 3,145,728 bytes"):
        DatasetTask(test_path=f"bomb.jsonl{suffix}", verifier="number")


def test_unpacking_ends_at_the_limit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        reads = 0

        def read(self, size: int) -> bytes:
            self.reads += 1
            assert self.reads < 10, "read on and on"
            return bytes(size)

    monkeypatch.setattr("selfcorrect.tasks.compressed._opened", lambda *_: Zeros())
    monkeypatch.setattr("selfcorrect.tasks.compressed.MAX_UNPACKED", 3 * 2**20)
    (here / "bomb.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match="unpacks to more than 3,145,728 bytes"):
        DatasetTask(test_path="bomb.jsonl.gz", verifier="number")


def test_a_compressed_file_of_unknown_content_is_no_hub_id(here: Path) -> None:
    (here / "sums.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ConfigError, match=r"problems in sums.gz: the suffix is '.gz'. Give a .jsonl"):
        DatasetTask(test_path="sums.gz", verifier="number")
    with pytest.raises(ConfigError, match=r"no such file or directory, and it is not a hub id"):
        DatasetTask(test_path="data/sums.jsonl.gz", verifier="number")


def test_without_the_package_a_zst_file_names_its_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "sums.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        ConfigError, match=r"reading sums.jsonl.zst needs zstandard.*selfcorrect\[data\].*or unpack the"
    ):
        DatasetTask(test_path="sums.jsonl.zst", verifier="number")
