"""Test evaluations that revise a shared pool of drafts in place of a model's own first attempts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_model
from support.verifiers import lenient_additions

from selfcorrect import evaluate
from selfcorrect.__main__ import main
from selfcorrect.errors import ConfigError, DataError, RunDirectoryError
from selfcorrect.evaluation.compare import compare
from selfcorrect.evaluation.draft_pool import DraftPool
from selfcorrect.evaluation.evaluation import Evaluation
from selfcorrect.evaluation.rescore import rescore
from selfcorrect.report.terminal import all_tables
from selfcorrect.storage.episode_log import read_episodes
from selfcorrect.tasks import get_task
from selfcorrect.types import Split, StopReason

pytestmark = pytest.mark.usefixtures("lenient")
TASK: dict[str, Any] = {"task_options": {"digits": 2}, "max_tokens": 6, "limit": 12}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of another model with six samples of each problem, correct and incorrect ones."""
    out = tmp_path_factory.mktemp("pool") / "e"
    with lenient_additions():
        evaluate(tiny_model(7), "addition", temperature=1.0, samples=6, sampled=False, out=out, **TASK)
    return out


def on_pool(pool: Path, **more: Any) -> Evaluation:
    return evaluate(tiny_model(3), "addition", drafts=str(pool), **{**TASK, **more})


def stored_firsts(pool: Path) -> dict[str, dict[str, bool]]:
    found: dict[str, dict[str, bool]] = {}
    for line in (pool / "episodes/eval-attempts.jsonl").read_text().splitlines():
        episode = json.loads(line)
        turn = episode["turns"][0]
        found.setdefault(episode["problem_id"], {})[turn["text"]] = turn["verdict"] == "correct"
    return found


def test_every_problem_is_revised_from_one_of_its_stored_attempts_half_of_them_incorrect(pool: Path) -> None:
    found, stored = on_pool(pool), stored_firsts(pool)
    firsts = [(episode.problem_id, episode.attempts[0]) for episode in found.episodes]
    verdicts = [first.judged.correct for _, first in firsts]
    known = [(stored[problem][first.text], first) for problem, first in firsts if first.text in stored[problem]]
    assert len(known) >= 8, "a random model also says words that are no characters of its tokenizer"
    assert all(verdict == first.judged.correct for verdict, first in known)
    both = [problem for problem, texts in stored.items() if len(set(texts.values())) == 2]
    assert len(both) >= 6 and sum(verdicts) == len(verdicts) // 2, "enough problems have both kinds"
    own = evaluate(tiny_model(3), "addition", **TASK)
    assert [e.attempts[0].text for e in own.episodes] != [e.attempts[0].text for e in found.episodes]


def test_m_w_and_m_r_are_accuracies_after_each_kind_of_draft(pool: Path) -> None:
    found = on_pool(pool)
    rates = found.to_json()["decomposition"]["detection"]
    for verdict, name in ((False, "correct_if_incorrect"), (True, "correct_if_correct")):
        among = [e.attempts[1].judged.correct for e in found.episodes if e.attempts[0].judged.correct is verdict]
        assert rates[name] == pytest.approx(sum(among) / len(among))
        low, high = rates[f"{name}_ci95"]
        assert low - 1e-9 <= rates[name] <= high + 1e-9


def test_tables_and_comparisons_know_that_drafts_are_given(pool: Path, tmp_path: Path) -> None:
    given, own = tmp_path / "given", tmp_path / "own"
    digest = on_pool(pool, out=given).drafts
    evaluate(tiny_model(3), "addition", out=own, **TASK)
    summary = json.loads((given / "summary.json").read_text())["results"]["model"]
    assert digest and summary["drafts"] == digest
    assert summary["tokens_per_problem"] == summary["lengths"][1]["mean"], "nobody samples the drafts here"
    with pytest.raises(DataError, match=r"plan\.drafts: "):
        compare(given, own)
    compare(given, given)
    assert rescore(given).evaluation.drafts == digest
    assert "t1 are the drafts of a shared pool" in all_tables({"m": summary})
    assert main(["report", str(given), str(own), "--out", str(tmp_path / "r.html")]) == 0
    assert "drafts of a shared pool" in (tmp_path / "r.html").read_text()


def test_an_unfinished_evaluation_goes_on_with_the_same_drafts_only(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    on_pool(pool, out=out)
    with pytest.raises(RunDirectoryError, match=r"drafts: .* there, 'unset' requested"):
        evaluate(tiny_model(3), "addition", out=out, **TASK)


def test_what_no_pool_can_serve_is_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no first attempt at 8 of 20 problems"):
        on_pool(pool, limit=20)
    with pytest.raises(ConfigError, match="an evaluation of 'addition', not of 'arithmetic'"):
        evaluate(tiny_model(3), "arithmetic", drafts=str(pool), limit=2, max_tokens=6)
    with pytest.raises(ConfigError, match="the controls are for a model's own drafts"):
        on_pool(pool, controls=True)
    with pytest.raises(ConfigError, match="it needs turns >= 2"):
        on_pool(pool, turns=1)
    with pytest.raises(RunDirectoryError, match="holds no evaluation"):
        on_pool(tmp_path)


def test_drafts_that_are_truncated_in_the_pool_are_announced(
    pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the new evaluation they look complete: their text ends, and so does the turn."""
    on_pool(pool)
    found = [record for record in caplog.records if "truncated at that evaluation's token limit" in record.getMessage()]
    cut = {
        (episode["problem_id"], turn["text"])
        for episode in map(json.loads, (pool / "episodes/eval-attempts.jsonl").read_text().splitlines())
        for turn in episode["turns"][:1]
        if turn["stop"] == "length"
    }
    chosen = DraftPool.of(pool, "addition", get_task("addition", {"digits": 2}).problems(Split.TEST, seed=0, limit=12))
    expected = sum(draft in cut for draft in chosen.texts.items())
    assert chosen.truncated == expected > 0 and len(found) == 1
    assert found[0].getMessage().startswith(f"{expected} of the 12 drafts in ")
    caplog.clear()
    ample = tmp_path / "ample"
    evaluate(tiny_model(7), "addition", out=ample, **{**TASK, "max_tokens": 60, "stop": ["1", "2", "3", "4", "5"]})
    on_pool(ample)
    stops = {
        turn.stop for turn in (episode.attempts[0] for episode in read_episodes(ample / "episodes/eval-attempts.jsonl"))
    }
    assert stops <= {StopReason.END, StopReason.STOP} and "truncated at that" not in caplog.text
