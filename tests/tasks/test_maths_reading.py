"""Mathematics: which part of a completion is its answer."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("math_verify")

import selfcorrect
from selfcorrect.tasks.math.reading import flexible_answer, own_solution, strict_answer
from selfcorrect.tasks.math.task import MathsVerifier, final_answer
from selfcorrect.tasks.math.wrapping import bare
from selfcorrect.types import Outcome

COMPLETIONS = Path(__file__).parents[1] / "data" / "maths_completions.jsonl"


def completions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in COMPLETIONS.read_text(encoding="utf-8").splitlines()]


def test_the_corpus_of_completions_gets_the_verdicts_written_by_hand() -> None:
    rows, verifier = completions(), MathsVerifier("flexible")
    verdicts = [verifier(row["text"], row["reference"]).by_rule for row in rows]
    wrong = [
        row
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict != {rule: Outcome(row[rule]) for rule in ("strict", "flexible")}
    ]
    assert not wrong


def test_the_corpus_of_completions_is_large() -> None:
    rows = completions()
    assert len({(row["text"], row["reference"]) for row in rows}) == len(rows) >= 220
    assert min(Counter(row["flexible"] for row in rows).values()) >= 15


FORM = "Final Answer: The final answer is $7$. I hope it is correct."


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (f"We add. {FORM}", "7", "7"),
        (f"Final Answer: The final answer is $6$. I hope it is correct. No: {FORM}", "7", "7"),
        (f"{FORM} Or is the answer 8?", "7", "7"),
        ("Final Answer: The final answer is 7", None, "7"),
        ("Final Answer: The final answer is $$. I hope it is correct.", None, None),
        ("final answer: the final answer is $7$. i hope it is correct.", None, "7"),
        ("So $x = 3$ and the answer is \\boxed{\\frac{1}{2}}.", None, "\\frac{1}{2}"),
        ("\\boxed{1} is wrong. Therefore \\boxed{2}", None, "2"),
        ("\\boxed{3}. Check: the answer is 4.", None, "4"),
        ("It holds that 3 + 4 = 7.\n#### 7", None, "7"),
        ("The answer is 1.5. The rest is left.", None, "1.5"),
        ("The answer is: 12 apples", None, "12 apples"),
        ("**Answer:** 12", None, "12"),
        ("She has 3 bags of 4, which makes 12 in all", None, "12"),
        ("We find $a$ and then $b+1$ at last", None, "b+1"),
        ("\\frac{1}{2}", None, "\\frac{1}{2}"),
        ("x^2+1", None, "x^2+1"),
        ("(1,2]", None, "(1,2]"),
        ("I do not know", None, None),
        ("", None, None),
        ("\\boxed{1", None, "1"),
        ("The answer is:\n\n\\[\n42\n\\]", None, "42"),
        ("$$x=\\boxed{1}\\quad\\text{or}\\quad x=\\boxed{2}$$", None, "1, 2"),
        ("\\boxed{2}. Wait, actually \\boxed{3}", None, "3"),
        (f"<think>{FORM}</think>", None, None),
        (f"<think>{FORM}", None, None),
    ],
)
def test_the_answer_is_found_by_the_documented_rules(text: str, strict: str | None, flexible: str | None) -> None:
    assert (strict_answer(text), flexible_answer(text)) == (strict, flexible)


@given(st.text(max_size=200) | st.text("$\\{}()[]boxed answeri:#1 .\n", max_size=200))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    found = flexible_answer(text)
    assert found is None or (found and bare(found) == found)
    assert strict_answer(text) in (None, found)


@given(st.text(st.characters(codec="ascii", exclude_characters="$*`"), max_size=60))
def test_what_is_written_in_the_form_is_found(answer: str) -> None:
    text = f"The answer is \\boxed{{1}}.\n{final_answer(answer)}\n"
    if "Final Answer:" not in answer and "I hope it" not in answer and own_solution(text) == text:
        assert strict_answer(text) == (bare(answer) or None)


@pytest.mark.parametrize(
    "header", ["Question:", "Q:", "**Problem 7**", "Human:", "### Instruction:", "User: hello", "[INST]"]
)
@pytest.mark.parametrize("finish", ["#### 18", "The answer is 18.", "\\boxed{18}", final_answer("18"), "18"])
def test_a_base_models_next_question_is_not_read(finish: str, header: str) -> None:
    text = f"{finish}\n\n{header}\n3+2?\n\n{final_answer('5')}"
    assert flexible_answer(text) == "18"
    assert strict_answer(text) == ("18" if finish == final_answer("18") else None)


def test_a_new_start_in_the_same_solution_is_a_correction() -> None:
    text = f"{final_answer('18')}\n\nWait, that question was about pens. I correct it.\n\n{final_answer('5')}"
    assert (strict_answer(text), flexible_answer(text)) == ("5", "5")


NONSENSE = re.findall(
    r"\S+",
    r"<think> <answer> \boxed{ \boxed{1} \boxed{1}and\boxed ( \( \[ $ $$ { } #### ** ` 1, 1/ Q: answer: Question: \begin{align}",
)
SPACED = ("answer is ", "answer is\n", "Q: 1\n", "#### ", "answer is: \\[", "Final Answer: The final answer is")


@pytest.mark.slow
@pytest.mark.parametrize("part", [*NONSENSE, *SPACED])
def test_reading_takes_linear_time(part: str) -> None:
    """A quadratic rule would need hours for such texts."""
    for end in ("", "\n\n#### 7", "\\boxed{7}"):
        flexible_answer(part * (300_000 // len(part)) + end)


def test_no_group_is_repeated_possessively() -> None:
    """Python before 3.11.5 matches `(?:a|b)*+` wrongly; an atomic group, `(?>(?:a|b)*)`, it matches rightly."""
    source = Path(selfcorrect.__file__).parent
    for path in source.rglob("*.py"):
        strings = (n.value for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Constant))
        found = [text for text in strings if isinstance(text, str) and re.search(r"\)(?:[*+?]|\{[\d,]*\})\+", text)]
        assert not found, path
