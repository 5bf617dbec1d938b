"""The conversation in ids: prompts, observation_ids, and what every attempt continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import ScriptedEngine
from support.episodes import SCRIPT, problem
from support.models import tiny_model
from support.verifiers import FunctionVerifier

from selfcorrect.engines import Completion, HFEngine, Request, Sampling
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import GivenAttempt, RolloutRequest, check_context, roll_out
from selfcorrect.types import Episode, StopReason
from selfcorrect.zoo.addition import make_tokenizer

END = 2
SAMPLING = Sampling(1.0, 6)

TRIMMING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LAST_WORD_ONLY = (  # as templates that strip reasoning do: of an earlier attempt only what follows the last "="
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'].split('=')[-1] if m['role'] == 'assistant' else m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPPING = (
    "{% for m in messages if m['role'] != 'assistant' %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REPEATING = "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}<|end|>{% endfor %}"


def chat_with(template: str | None = None, **script: Any) -> ChatFormat:
    tokenizer = make_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return ChatFormat(tokenizer, replace(SCRIPT, **script))


def samples(problems: int = 3, group: int = 4) -> list[RolloutRequest]:
    chosen = [problem(f"p{i}", f"{i}{i}+{i}=") for i in range(problems)]
    return [RolloutRequest(p, g, seed=0, purpose="test", step=0) for p in chosen for g in range(group)]


def tagged(chat: ChatFormat) -> ScriptedEngine:
    """Answers with digits that name the problem, the sample and the turn; every third answer is cut off."""
    digits = chat.tokenizer.convert_tokens_to_ids([*"0123456789"])

    def answer(request: Request) -> Sequence[int]:
        key = request.key
        tag = (digits[int(key.problem[1:])], digits[key.sample], digits[key.turn])
        return tag * 2 if (key.sample + key.turn) % 3 == 2 else (*tag, END)

    return ScriptedEngine(answer, END)


def play(chat: ChatFormat, engine: Any, chosen: Sequence[RolloutRequest], **more: Any) -> list[Episode]:
    return roll_out(chosen, engine=engine, chat=chat, verifier=FunctionVerifier(), sampling=SAMPLING, **more)


@pytest.mark.pitfall(8)
@pytest.mark.parametrize("template", [None, TRIMMING, LAST_WORD_ONLY])
def test_the_second_context_begins_with_the_prompt_and_the_sampled_ids(template: str | None) -> None:
    chat = chat_with(template)
    # Trimming or splitting would change this answer.
    spaced = chat.tokenizer.convert_tokens_to_ids([" the", "=", "7", " correct"])
    engine = ScriptedEngine(lambda request: [*spaced, END] if request.key.turn == 0 else [9, END], END)
    chosen = samples()
    episodes = play(chat, engine, chosen)
    second = [request.ids for request in engine.asked if request.key.turn == 1]
    for sample, context, played in zip(chosen, second, episodes, strict=True):
        start = (*chat.prompt(sample.problem.prompt), *spaced, END)
        assert context[: len(start)] == start
        assert context == (*start, *chat.observation_ids(1, "", (END,)))
        assert played.ids == (*context, 9, END)


def test_an_instruction_may_repeat_each_episodes_own_problem() -> None:
    chat = chat_with(revise="={prompt}")
    episodes = play(chat, ScriptedEngine(lambda request: [9, END], END), samples())
    for episode in episodes:
        assert (
            chat.tokenizer.decode(episode.turns[1].observation_ids)
            == f"<|user|>={episode.problem.prompt}<|end|><|assistant|>"
        )


@pytest.mark.pitfall(8)
def test_the_whole_row_reads_as_the_template_renders_it() -> None:
    """Where nothing is rewritten, the episode's ids are those of the rendered conversation."""
    chat = chat_with()
    engine = ScriptedEngine(lambda request: [9, 10, END], END)
    (played,) = play(chat, engine, samples(1, 1))
    said = chat.tokenizer.decode([9, 10])
    messages = [
        {"role": "user", "content": "00+0="},
        {"role": "assistant", "content": said},
        {"role": "user", "content": SCRIPT.revise},
        {"role": "assistant", "content": said},
    ]
    rendered = chat.tokenizer.apply_chat_template(messages, tokenize=False)
    assert played.ids == tuple(chat.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def pieces(episode: Episode) -> tuple[str, int, list[tuple[int, ...]]]:
    return episode.problem.id, episode.sample, [turn.ids for turn in episode.turns]


@pytest.mark.pitfall(9)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_every_second_attempt_continues_its_own_first(order: list[int], cut: int) -> None:
    chat = CHAT
    everyone = samples()
    engine = tagged(chat)
    chosen = [everyone[i] for i in order]
    episodes = [*play(chat, engine, chosen[:cut]), *(play(chat, engine, chosen[cut:]) if cut < 12 else [])]
    assert [(e.problem.id, e.sample) for e in episodes] == [(s.problem.id, s.sample) for s in chosen]
    asked_first = [request for request in engine.asked if request.key.turn == 0]
    firsts = {(r.key.problem, r.key.sample): (r.ids, tuple(engine.answer(r))[:6]) for r in asked_first}
    for request in engine.asked:
        if request.key.turn == 1:
            prompt, answer = firsts[request.key.problem, request.key.sample]
            assert request.ids[: len(prompt) + len(answer)] == prompt + answer
    for played in episodes:
        context, answer = firsts[played.problem.id, played.sample]
        assert played.turns[0].observation_ids + played.turns[0].ids == context + answer


CHAT = chat_with()


@pytest.mark.pitfall(9)
def test_a_real_engine_keeps_every_samples_own_draft() -> None:
    """With the cache continued: each turn's log-probabilities are those of its own row, from scratch."""
    model = tiny_model(3)
    chosen = samples(3, 4)
    order = np.random.default_rng(0).permutation(len(chosen))
    engine = HFEngine(model, max_num_seqs=5)
    played = play(CHAT, engine, chosen)
    shuffled = play(CHAT, engine, [chosen[i] for i in order])
    assert [pieces(e) for e in shuffled] == [pieces(played[i]) for i in order]
    assert len({e.turns[0].ids for e in played}) > 8
    for e in played:
        context = (*e.turns[0].observation_ids, *e.turns[0].ids, *e.turns[1].observation_ids)
        key = RolloutRequest(e.problem, e.sample, 0, "test", 0).key(1)
        (alone,) = HFEngine(model).generate([Request(context, key)], SAMPLING)
        assert alone.ids == e.turns[1].ids
        np.testing.assert_allclose(alone.logprobs, e.turns[1].logprobs, atol=1e-12, rtol=0)


def test_the_end_of_a_turn_is_not_put_twice_and_belongs_to_the_glue_after_truncation() -> None:
    chat = chat_with()
    ended, cut = chat.observation_ids(1, "", (9, END)), chat.observation_ids(1, "", (9, 9))
    assert cut == (END, *ended)
    assert END not in ended[:1]
    assert cut == chat.observation_ids(1, "", ())


def test_a_truncated_attempt_is_verified_and_revised_and_its_missing_end_is_not_trained() -> None:
    chat = chat_with()
    nines = chat.tokenizer.convert_tokens_to_ids("9")
    engine = ScriptedEngine(lambda request: [nines] * 6 if request.key.turn == 0 else [nines, END], END)
    verifier = FunctionVerifier(lambda problem, text: text == "999999")
    (played,) = roll_out(samples(1, 1), engine=engine, chat=chat, verifier=verifier, sampling=SAMPLING)
    first, second = played.turns
    assert (first.stop, first.ids, first.verdict.correct) == (StopReason.LENGTH, (nines,) * 6, True)
    assert second.observation_ids[0] == END
    assert (second.stop, second.ids, second.verdict.correct) == (StopReason.END, (nines, END), False)
    assert [text for _, text in verifier.seen] == ["999999", "9"]


def test_special_tokens_are_no_text_for_the_verifier() -> None:
    assert chat_with().text((9, END)) == chat_with().text((9,))


@pytest.mark.parametrize("template", [DROPPING, REPEATING])
def test_a_template_that_rewrites_attempts_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match="rewrites earlier attempts"):
        chat_with(template).observation_ids(1, "", ())


def test_without_a_template_messages_stand_on_lines_of_their_own() -> None:
    chat = chat_with()
    chat.tokenizer.chat_template = None
    plain = ChatFormat(chat.tokenizer, SCRIPT)
    messages = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    assert plain._render(messages) == "1+1=\n2<|end|>\n"
    assert plain.observation_ids(1, "", (9,))[0] == END
    assert plain.observation_ids(1, "", (9, END)) == plain.observation_ids(1, "", (9,))[1:]


def test_a_system_message_comes_first() -> None:
    chat = chat_with(system="Please")
    assert chat.prompt("1+1=") == (*chat.ids("<|system|>Please<|end|>"), *chat_with().prompt("1+1="))


def test_some_first_attempts_may_be_given() -> None:
    chat = chat_with()
    mine = tagged(chat)
    base = GivenAttempt(Completion((8, END), (-0.5, -0.5), StopReason.END))
    episodes = play(chat, mine, samples(2, 4), given=[base if i % 4 == 0 else None for i in range(8)])
    assert [e.turns[0].online for e in episodes] == [False, True, True, True] * 2
    assert all(e.turns[1].online for e in episodes)
    assert {e.turns[0].ids for e in episodes if not e.turns[0].online} == {(8, END)}
    assert not any(e.turns[0].copied for e in episodes)
    assert {r.key.sample for r in mine.asked if r.key.turn == 0} == {1, 2, 3}
    continued = [request for request in mine.asked if request.key.turn == 1 and request.key.sample == 0]
    for request, played in zip(continued, (episodes[0], episodes[4]), strict=True):
        assert request.parent is None  # another model's cache is of no use
        assert request.ids == (*played.turns[0].observation_ids, 8, END, *played.turns[1].observation_ids)


def test_given_drafts_are_continued_and_not_trained() -> None:
    chat, engine = chat_with(), tagged(chat_with())
    given = [GivenAttempt(Completion((5 + i, END), (0.0, 0.0), StopReason.END)) for i in range(4)]
    episodes = play(chat, engine, samples(1, 4), given=given)
    assert [e.turns[0].ids for e in episodes] == [(5 + i, END) for i in range(4)]
    assert not any(e.turns[0].online for e in episodes)
    assert {r.key.turn for r in engine.asked} == {1}


# ---------------------------------------------------------------- too long


def test_the_longest_possible_episode_is_counted_with_every_turn_and_its_glue() -> None:
    chat = chat_with()
    chosen = [problem("short", "1+1="), problem("long", "111111+1=")]
    total = len(chat.prompt("111111+1=")) + 2 * 10 + len(chat.observation_ids(1, "", ()))
    assert check_context(chosen, chat, 10, total) == total


def test_a_prompt_that_does_not_fit_is_refused_with_its_numbers() -> None:
    chat = chat_with()
    chosen = [problem("short", "1+1="), problem("long", "111111+1=")]
    total = check_context(chosen, chat, 10, 10_000)
    with pytest.raises(ConfigError, match=f"{total} tokens .*'long'.*context is {total - 1}"):
        check_context(chosen, chat, 10, total - 1)
    with pytest.raises(ConfigError):
        check_context(chosen, chat_with(turns=3), 10, total)
