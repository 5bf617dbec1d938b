"""Test the base model for micro_code: the habits of its synthetic authors, and that equal seeds make equal bits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.code.micro_code import KINDS, problem_stream
from selfcorrect.tasks.code.task import REVISE
from selfcorrect.training.sample import CONTEXT
from selfcorrect.types import Problem
from selfcorrect.zoo.micro_code import PATTERN, MicroCodeBase, Programmers, make_micro_code_base, template, vocabulary
from selfcorrect.zoo.tiny_llama import transcript, word_tokenizer

SMALL = MicroCodeBase(problems=60, steps=3, cooldown=2, batch_size=4, width=16, inner=16, heads=2, head_dim=8)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    stream = problem_stream(2, tuple(KINDS), generator("test"))
    return [next(stream) for _ in range(60)]


@pytest.fixture(scope="module")
def chat(problems: list[Problem]) -> ChatFormat:
    return ChatFormat(word_tokenizer(vocabulary(problems), PATTERN), Script(revise=REVISE))


def lines_of(text: str) -> list[str]:
    return text.split("\n    ")[1:]


def test_a_template_forgets_numbers_only() -> None:
    assert template("x = [v for v in x if v > 12]") == template("x = [v for v in x if v > 3]")
    assert template("return max(x, default=0)") != template("return min(x, default=0)")


def test_the_share_of_misconceived_templates_is_the_recipes(problems: list[Problem]) -> None:
    known = {template(right) for problem in problems for right, *_ in problem.data["lines"]}
    for share in (0.0, 0.3, 1.0):
        some = Programmers(replace(SMALL, misconceived=share), problems, 1).misconceived
        assert some <= known and len(some) == round(share * len(known))
    one, other = (Programmers(SMALL, problems, seed).misconceived for seed in (1, 2))
    assert one != other and one == Programmers(SMALL, problems, 1).misconceived


def test_a_first_attempt_follows_firm_habits(problems: list[Problem]) -> None:
    programmers = Programmers(replace(SMALL, misconceived=0.4, firmness=0.9), problems, 1)
    rng = generator("first attempts")
    believed = count = 0
    for problem in problems * 10:
        program = programmers.first_attempt(problem, rng)
        for line, (right, typical, *_) in zip(lines_of(program), problem.data["lines"], strict=True):
            assert line in (right, typical)
            believed += (line == typical) == (template(right) in programmers.misconceived)
            count += 1
    assert believed / count == pytest.approx(0.9, abs=0.025)  # 1,800 lines: 3 standard errors are 0.021


def test_a_second_look_copies_a_line_or_writes_it_anew(problems: list[Problem]) -> None:
    programmers = Programmers(replace(SMALL, copied=0.4, reconsidered=0.7), problems, 1)
    rng = generator("second looks")
    right_after: dict[bool, list[bool]] = {True: [], False: []}
    for problem in problems * 10:
        draft, second = programmers.second_look(problem, rng)
        for before, after, known in zip(lines_of(draft), lines_of(second), problem.data["lines"], strict=True):
            assert {before, after} <= set(known)
            right_after[before == known[0]].append(after == known[0])
    shares = {before: sum(after) / len(after) for before, after in right_after.items()}
    assert len(right_after[True]) / 1800 == pytest.approx(0.5, abs=0.04)
    assert shares[True] == pytest.approx(0.4 + 0.6 * 0.7, abs=0.04)  # about 900 lines: 3 standard errors are 0.04
    assert shares[False] == pytest.approx(0.6 * 0.7, abs=0.05)


def test_the_tokenizer_keeps_problems_and_programs_whole(problems: list[Problem], chat: ChatFormat) -> None:
    for problem in problems:
        for text in (problem.prompt, problem.reference, *problem.data["wrong"], REVISE):
            assert chat.tokenizer.decode(chat.ids(text)) == text


def test_the_transcripts_look_like_those_of_a_rollout(problems: list[Problem], chat: ChatFormat) -> None:
    problem, rng = problems[0], generator("look")
    first, second = Programmers(SMALL, problems, 1).second_look(problem, rng)
    asked = f"<|user|>{problem.prompt}<|end|><|assistant|>{first}<|end|>"
    sample = transcript(chat, problem, [first, second])
    assert chat.tokenizer.decode(sample.ids) == f"{asked}<|user|>{REVISE}<|end|><|assistant|>{second}<|end|>"
    trained = chat.tokenizer.decode(sample.ids[sample.turn == 1])
    assert trained == f"{second}<|end|>" and set(sample.turn) == {CONTEXT, 1}  # the draft is another author's
    assert set(transcript(chat, problem, [first]).turn) == {CONTEXT, 0}


def test_the_same_seed_makes_the_same_bits() -> None:
    losses: list[float] = []
    one = make_micro_code_base(7, SMALL, on_step=lambda step, steps, loss: losses.append(loss))
    assert one.digest() == make_micro_code_base(7, SMALL).digest()
    assert one.digest() != make_micro_code_base(8, SMALL).digest()
    for other in ({"misconceived": 1.0}, {"firmness": 0.5}, {"copied": 0.0}, {"reconsidered": 0.0}):
        assert one.digest() != make_micro_code_base(7, replace(SMALL, **other)).digest()
    assert len(losses) == 3 and losses[-1] < losses[0]
