"""Test environments of the library `verifiers` as tasks, with the library where it is installed, else with a stand-in."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.task_check import check_task, check_text
from selfcorrect.storage.consent import code_of_task
from selfcorrect.tasks import base
from selfcorrect.tasks.environments import loading
from selfcorrect.tasks.environments import task as environments
from selfcorrect.tasks.environments.loading import open_environment
from selfcorrect.tasks.environments.task import VerifiersTask
from selfcorrect.types import Outcome, Split

SUPPORT = Path(__file__).parent.parent / "support"
INSTALLED = importlib.util.find_spec("verifiers") is not None
OWN = ("verifiers", "vf_sums", "vf_anagrams", "vf_letters")


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the tests' environments, and the stand-in where it is needed, on the import path."""
    for folder in (SUPPORT / "environments").iterdir():
        monkeypatch.syspath_prepend(str(folder))
    if not INSTALLED:
        monkeypatch.syspath_prepend(str(SUPPORT / "standin_verifiers"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in OWN and not INSTALLED]:
        del sys.modules[name]


def needs(name: str) -> None:
    """Skip an environment with load_environment() where the installed library no longer has it."""
    if INSTALLED and name != "vf-letters" and not hasattr(importlib.import_module("verifiers"), "load_environment"):
        pytest.skip("this version of verifiers has tasksets only")


def made_here(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> VerifiersTask:
    """Make a task without a separate process, which takes a second to start."""
    needs(name)
    monkeypatch.setattr(environments, "load", loading._loaded)
    return VerifiersTask(name, **options)


def rejection(name: str, **arguments: Any) -> str | None:
    needs(name)
    return open_environment(name, arguments).refusal()


# --- what is no task --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("vf-anagrams", {"turns": 3}, "it is a Talk, with several turns"),
        ("vf-anagrams", {"judge": True}, "asks another model"),
        ("vf-anagrams", {"group": True}, "compares several answers"),
        ("vf-letters", {"tool": True}, "calls tools"),
        ("vf-anagrams", {}, None),
        ("vf-sums", {}, None),
        ("vf-letters", {}, None),
    ],
)
def test_only_one_answer_that_is_judged_by_itself_can_be_a_task(
    name: str, arguments: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    found = rejection(name, **arguments)
    assert (found is None) if reason is None else (found is not None and reason in found)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nope", {}, "environment 'nope' is not installed"),
        ("../x", {}, "not the name of an environment"),
        ("os", {}, "is no environment"),
        ("vf-sums", {"digit": 2}, "has no argument 'digit'; it takes problems, held_out, digits"),
        ("vf-letters", {"splits": 2}, "rejects its options"),
        ("vf-letters", {"task": {"rewards": {"x": {"fn": "os:getcwd"}}}}, "rewards cannot be an option"),
        ("vf-sums", {"score": "near"}, "score = 'near': environment 'vf-sums' has exact"),
        ("vf-sums", {"threshold": 0.0}, "threshold = 0.0"),
        ("vf-sums", {"size": 0}, "size = 0"),
        ("vf-sums", {"form": "7"}, "lacks {answer}"),
    ],
)
def test_what_cannot_work_is_rejected_before_any_work(
    name: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(".", r"\.")):
        made_here(monkeypatch, name, **options)


def test_the_library_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "selfcorrect\[verifiers\]"'):
        VerifiersTask("vf-sums")


# --- problems ---------------------------------------------------------------------------------------


def test_rows_for_evaluation_are_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_here(monkeypatch, "vf-sums", problems=60, held_out=7)
    drawn = {split: task.problems(split, seed=0) for split in Split}
    assert len(drawn[Split.TEST]) == 7 and all(p.id.startswith("eval[") for p in drawn[Split.TEST])
    assert len(drawn[Split.TRAIN]) + len(drawn[Split.DEV]) == 60 and len(drawn[Split.DEV]) < 20
    assert task.notes == () and task.script.system is None
    assert task.problems(Split.TEST, seed=0) == drawn[Split.TEST] != task.problems(Split.TEST, seed=1)


def test_an_environment_without_such_rows_is_shared_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_here(monkeypatch, "vf-sums", problems=60, held_out=0)
    drawn = {split: {p.prompt for p in task.problems(split, seed=0)} for split in Split}
    assert sum(map(len, drawn.values())) == 60 and not drawn[Split.TEST] & drawn[Split.TRAIN]
    assert "no rows for evaluation" in task.notes[0]


def test_another_choice_of_arguments_makes_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_here(monkeypatch, "vf-letters", evaluation={"split": "test"})
    assert {p.reference for p in task.problems(Split.TEST, seed=0)} == {"aehrt", "aiprs"}
    assert task.notes == () and task.script.system == "Be brief."
    with pytest.raises(DataError, match="splits must be disjoint"):
        made_here(monkeypatch, "vf-letters", evaluation={"split": "train"})


def test_the_chat_becomes_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_here(monkeypatch, "vf-anagrams")
    problem = task.problems(Split.TRAIN, seed=0)[0]
    assert task.script.system is not None and task.script.system.startswith("Answer as <think>")
    assert problem.prompt.startswith(
        "User: Sort the letters of act.\n\nAssistant: <answer>act</answer>\n\nUser: Sort the letters of "
    )
    assert any("few-shot" in note for note in task.notes)


def test_settings_and_source_change_the_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = [made_here(monkeypatch, "vf-letters", threshold=t).version for t in (1.0, 0.5)]
    source = (SUPPORT / "environments" / "vf-letters" / "vf_letters.py").read_text()
    (tmp_path / "vf_letters.py").write_text(source + "\n# changed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("vf_letters")
    versions.append(made_here(monkeypatch, "vf-letters").version)
    sys.modules.pop("vf_letters")
    assert len(set(versions)) == 3


# --- verdicts ---------------------------------------------------------------------------------------


def answered(letters: str) -> str:
    return f"<think>Hm.</think><answer>{letters}</answer>"


def test_a_graded_reward_is_correct_from_the_threshold(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    strict, half = (made_here(monkeypatch, "vf-anagrams", threshold=t) for t in (1.0, 0.6))
    problem = next(p for p in strict.problems(Split.TRAIN, seed=0) if p.reference == "aegln")
    right, near = answered("aegln"), answered("aegxx")
    assert strict.verify(problem, right).outcome is Outcome.CORRECT
    assert strict.verify(problem, right).extracted == "aegln"
    found = strict.verify(problem, near)
    assert found.outcome is Outcome.INCORRECT and "reward 0.64 (overlap 0.6, brief 1" in found.detail
    assert half.verify(problem, near).outcome is Outcome.CORRECT
    assert half.verify(problem, answered("xegxx")).outcome is Outcome.INCORRECT  # 0.9 x 2/5 + 0.1
    assert strict.verify(problem, "  ").outcome is Outcome.NO_ANSWER
    assert "scored" not in capfd.readouterr().out


def test_one_reward_function_may_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_here(monkeypatch, "vf-anagrams", score="brief")
    problem = task.problems(Split.TRAIN, seed=0)[0]
    assert task.verify(problem, "nothing").correct and not task.verify(problem, "x" * 300).correct


def test_a_reward_function_that_raises_says_nothing_about_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_here(monkeypatch, "vf-anagrams", breaks=True)
    with pytest.raises(ValueError, match="a reward function failed: broken: RuntimeError: no such thing"):
        task.verify(task.problems(Split.TRAIN, seed=0)[0], answered("aegln"))


def test_a_taskset_scores_by_its_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made_here(monkeypatch, "vf-letters")
    problem = next(p for p in task.problems(Split.TRAIN, seed=0) if p.reference == "aegln")
    assert task.verify(problem, " aegln\n").correct
    found = task.verify(problem, "xxxxx")
    assert not found.correct and "reward 0.2 (" in found.detail and "length 1" in found.detail
    with pytest.raises(Exception, match="no such thing"):
        task.verify(problem, "raise")


@pytest.mark.slow
def test_the_environment_runs_in_processes_of_its_own(capfd: Any) -> None:
    needs("vf-anagrams")
    task = VerifiersTask("vf-anagrams", words=5)
    assert not any(name in sys.modules for name in OWN) or INSTALLED
    found = check_task(task, task.script, show=1)
    assert found.passed, check_text(found)
    assert "note: The environment has no rows for evaluation" in check_text(found)
    assert "\x1b[2J" not in "".join(capfd.readouterr())


# --- around it --------------------------------------------------------------------------------------


def test_a_stored_environment_needs_consent() -> None:
    assert [name for _, name, _ in code_of_task("verifiers:vf-sums", {})] == ["verifiers:vf-sums"]
    assert code_of_task("reasoning_gym:chain_sum", {}) == []


def test_the_family_is_registered() -> None:
    import tomllib

    project = tomllib.loads((SUPPORT.parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][base.GROUP]["verifiers"] == f"{VerifiersTask.__module__}:VerifiersTask"
