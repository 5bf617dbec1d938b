"""The base model for micro_code: what it reads, and that the same seed makes the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfcorrect.base_models import word_tokenizer
from selfcorrect.chat import ChatFormat
from selfcorrect.code_base import PATTERN, MicroCodeBase, make_micro_code_base, transcript, vocabulary
from selfcorrect.prompts import Script
from selfcorrect.randomness import generator
from selfcorrect.tasks.code import REVISE
from selfcorrect.tasks.micro_code import KINDS, careless_program, problem_stream
from selfcorrect.types import Problem

SMALL = MicroCodeBase(problems=60, steps=3, cooldown=2, batch_size=4, width=16, inner=16, heads=2, head_dim=8)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    stream = problem_stream(2, tuple(KINDS), generator("test"))
    return [next(stream) for _ in range(60)]


def test_careless_programs_get_each_line_wrong_with_the_given_probability(problems: list[Problem]) -> None:
    rng = generator("careless")
    shares = {0.0: 0.0, 0.25: 0.25, 1.0: 1.0}
    for share, expected in shares.items():
        wrong = lines = 0
        for problem in problems * 10:
            written = careless_program(problem, share, rng).split("\n    ")[1:]
            for line, (right, *mistakes) in zip(written, problem.data["lines"], strict=True):
                assert line == right or line in mistakes
                wrong, lines = wrong + (line != right), lines + 1
        assert wrong / lines == pytest.approx(expected, abs=0.05)  # 1,800 lines: 3 standard errors are 0.03
    assert careless_program(problems[0], 0.0, rng) == problems[0].reference


def test_the_tokenizer_keeps_problems_and_programs_whole(problems: list[Problem]) -> None:
    tokenizer = word_tokenizer(vocabulary(problems), PATTERN)
    for problem in problems:
        for text in (problem.prompt, problem.reference, *problem.data["wrong"], REVISE):
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_transcript_is_two_programs_that_owe_nothing_to_each_other(problems: list[Problem]) -> None:
    chat = ChatFormat(word_tokenizer(vocabulary(problems), PATTERN), Script(revise=REVISE))
    rng = generator("transcripts")
    episodes = [transcript(chat, problem, 0.5, rng) for problem in problems]
    right = [[turn.text == episode.problem.reference for turn in episode.turns] for episode in episodes]
    assert {(True, False), (False, True), (False, False)} <= {tuple(both) for both in right}
    text = chat.tokenizer.decode(episodes[0].ids)
    first, second = (turn.text for turn in episodes[0].turns)
    asked = f"<|user|>{problems[0].prompt}<|end|><|assistant|>{first}<|end|>"
    assert text == f"{asked}<|user|>{REVISE}<|end|><|assistant|>{second}<|end|>"
    assert all(turn.ids[-1] == chat.tokenizer.eos_token_id and turn.online for turn in episodes[0].turns)


def test_the_same_seed_makes_the_same_bits() -> None:
    losses: list[float] = []
    one = make_micro_code_base(7, SMALL, on_step=lambda step, steps, loss: losses.append(loss))
    assert one.digest() == make_micro_code_base(7, SMALL).digest()
    assert one.digest() != make_micro_code_base(8, SMALL).digest()
    assert one.digest() != make_micro_code_base(7, replace(SMALL, carelessness=0.2)).digest()
    assert len(losses) == 3 and losses[-1] < losses[0]
