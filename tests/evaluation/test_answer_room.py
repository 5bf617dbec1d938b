"""What `tasks check` says of the room that an answer needs, and when it says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.sums import write

from selfcorrect.cli.app import main
from selfcorrect.evaluation.answer_room import STEPS_ROOM, AnswerRoom, answer_room
from selfcorrect.script import Script
from selfcorrect.tasks.dataset.examples import example_files
from selfcorrect.tasks.dataset.task import DatasetTask

STEPS = Script("{prompt}\n\nThink step by step.")
PLAIN = Script("{prompt}\n\nReply with the answer alone.")


def words(text: str) -> int:
    return len(text.split())


def room(script: Script, solutions: list[str], answers: list[str], **more: Any) -> AnswerRoom:
    return answer_room(script, solutions, answers, words, **more)


def test_the_longest_solution_gets_half_as_much_again_in_multiples_of_32() -> None:
    solutions = ["a b c", " ".join("a" * 40)]
    assert room(STEPS, solutions, ["a"]).max_tokens == 64  # 1.5 * 41 = 61.5
    assert room(STEPS, [" ".join("a" * 43)], ["a"]).max_tokens == 96  # 1.5 * 44 = 66
    assert room(STEPS, ["a"], [" ".join("a" * 43)]).max_tokens == 96, "the form of the final answer counts, too"


def test_final_answers_bound_only_a_model_that_writes_nothing_else() -> None:
    found = room(PLAIN, [], ["a b c d", "a"])
    assert found.max_tokens == 16  # 2 * 5 = 10, in multiples of 8
    assert "only if the model writes the answer alone" in " ".join(found.notes)


def test_where_steps_are_asked_for_and_none_are_known_no_bound_follows() -> None:
    for script in (STEPS, Script(system="Explain your answer.")):
        found = room(script, [], ["a"], configured=24)
        said = " ".join(found.notes)
        assert found.max_tokens is None and "no bound for rollout.max_tokens follows" in said
        assert "rollout.max_tokens = 24 may be too little for steps" in said and "truncated" in said
        assert "may be too little" not in " ".join(room(script, [], ["a"], configured=STEPS_ROOM).notes)


def test_a_limit_that_truncates_the_data_is_named() -> None:
    solutions = [" ".join("a" * 40)]
    assert "= 40 truncates the longest whole solution" in " ".join(room(STEPS, solutions, [], configured=40).notes)
    assert "truncates" not in " ".join(room(STEPS, solutions, [], configured=41).notes)


def test_without_a_tokenizer_nothing_is_suggested() -> None:
    assert answer_room(PLAIN, ["a"], ["a"], None).max_tokens is None


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main(["tasks", "check", *arguments, "--show", "0", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def lengths(found: dict[str, Any]) -> dict[str, int]:
    return {each["what"]: each["longest"] for each in found["lengths"]}


def test_a_reference_that_holds_the_whole_solution_is_counted_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{n}+1?", "answer": f"We add one to {n}.\n#### {n + 1}"} for n in range(20)]
    path = write(tmp_path / "sums.jsonl", rows)
    options = {"test_path": str(path), "verifier": "number", "reference_pattern": r"#### (.*)"}
    assert DatasetTask(**options).responses == [row["answer"] for row in rows]
    given = [part for name, value in options.items() for part in ("--task-option", f"{name}={value}")]
    found = check(capsys, "dataset", *given)
    assert lengths(found)["whole solution"] == max(len(row["answer"]) for row in rows)
    assert lengths(found)["final answer alone"] < lengths(found)["whole solution"]
    (tmp_path / "alone.jsonl").write_text("")
    write(tmp_path / "alone.jsonl", [{**row, "answer": str(n)} for n, row in enumerate(rows)])
    assert not DatasetTask(test_path=str(tmp_path / "alone.jsonl"), verifier="number").responses


def test_the_worked_solutions_of_mathematics_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("math_verify")
    solution = "We add. " * 30 + "It is $\\boxed{2}$."
    path = write(tmp_path / "math.jsonl", [{"problem": "1+1?", "solution": solution}])
    found = check(capsys, "math", "--task-option", f"test_path={path}")
    assert lengths(found)["whole solution"] == len(solution)
    path = write(tmp_path / "math.jsonl", [{"problem": "1+1?", "answer": "2"}])
    found = check(capsys, "math", "--task-option", f"test_path={path}")
    assert "whole solution" not in lengths(found) and "asks for steps" in " ".join(found["room"]["notes"])


def test_multiple_choice_says_that_its_steps_need_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "science.csv").write_bytes(example_files()["science.csv"])
    config = tmp_path / "mine.toml"
    config.write_text(
        "[task]\nname = 'dataset'\n[task.options]\nprompt_field = 'question'\nreference_field = 'key'\nverifier = 'choice'\n"
        f"test_path = '{tmp_path / 'science.csv'}'\noptions_field = ['a', 'b', 'c', 'd']\n[rollout]\nmax_tokens = 24\n"
    )
    main(["tasks", "check", str(config), "--show", "0"])
    out = " ".join(capsys.readouterr().out.split())
    assert "final answers alone and the first message asks for steps" in out
    assert "rollout.max_tokens = 24 may be too little for steps" in out and "--limit 20 --max-tokens 512" in out


def test_a_model_gives_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(capsys, "addition", "--model", "addition-base", "--set", "rollout.max_tokens=3")
    longest = lengths(found)["whole solution"]
    assert found["unit"] == "tokens" and found["room"]["max_tokens"] == 32
    assert "rollout.max_tokens = 3 truncates the longest whole solution of the data" in " ".join(found["room"]["notes"])
    assert longest == 7
