"""What templates do around a turn: who ends it, how a text starts, options, and reasoning that the prompt opens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rollout.test_templates import CHATML, GEMMA, Family
from support.engines import ScriptedEngine
from support.episodes import problem
from support.families import of_family
from support.verifiers import FunctionVerifier
from tokenizers.processors import TemplateProcessing

from selfcorrect.engines import HFEngine, Sampling
from selfcorrect.errors import ConfigError
from selfcorrect.models.chat_template import end_of_turn
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, roll_out
from selfcorrect.script import Script
from selfcorrect.tasks.verifier_pool import judge
from selfcorrect.types import Outcome, StopReason, Verdict

SCRIPT = Script(revise="Again.")
PHI = Family(
    "Phi-3",
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    end="<|endoftext|>",
    special=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    prompt="",
    observation_ids="",
    system="",
)
LOST = {
    "<|im_end|>": replace(CHATML, end="<|endoftext|>", special=("<|im_start|>", "<|im_end|>")),
    "<end_of_turn>": replace(GEMMA, end="<eos>", special=("<start_of_turn>", "<end_of_turn>")),
    "<|end|>": PHI,
}
"""Families whose tokenizer names another end token than the one that the template writes, by the latter."""
THINKING = replace(
    CHATML,
    template="{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}",
    special=("<|im_start|>", "<think>", "</think>"),
)


@pytest.mark.parametrize("end", LOST)
def test_a_turn_ends_with_the_token_that_the_template_writes(end: str) -> None:
    tokenizer = LOST[end].tokenizer()
    expected = tokenizer.convert_tokens_to_ids(end)
    assert end_of_turn(tokenizer) == expected != tokenizer.eos_token_id
    hf = of_family("Llama", tied=False, vocab_size=len(tokenizer)).model
    hf.generation_config.eos_token_id = tokenizer.eos_token_id
    assert LanguageModel(hf, tokenizer).end_ids >= {expected, tokenizer.eos_token_id}
    observation = ChatFormat(tokenizer, SCRIPT).observation_ids(1, "1+2", (expected,))
    assert expected in ChatFormat(tokenizer, SCRIPT).observation_ids(1, "1+2", ())[:1] and observation[0] != expected


def with_start(tokenizer: Any) -> Any:
    """A tokenizer whose post-processor begins every text with ``<s>``, as base models of Llama, Gemma and Mistral have."""
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return tokenizer


def test_without_a_template_a_prompt_starts_as_every_text_of_the_tokenizer() -> None:
    family = replace(CHATML, template="", bos="<s>")
    tokenizer = with_start(family.tokenizer())
    tokenizer.chat_template = None
    start = tokenizer.convert_tokens_to_ids("<s>")
    chat = ChatFormat(tokenizer, SCRIPT)
    prompt = chat.prompt("1+2")
    assert prompt[0] == start and prompt.count(start) == 1 and prompt == tuple(tokenizer("1+2\n")["input_ids"])
    assert start not in chat.observation_ids(1, "1+2", ())


def test_a_template_writes_the_start_itself_and_nobody_doubles_it() -> None:
    tokenizer = with_start(replace(GEMMA, bos="<s>").tokenizer())
    start = tokenizer.convert_tokens_to_ids("<s>")
    assert ChatFormat(tokenizer, SCRIPT).prompt("1+2").count(start) == 1


def test_options_reach_the_template_and_unknown_ones_are_refused() -> None:
    tokenizer = THINKING.tokenizer()
    quick, slow = (ChatFormat(tokenizer, SCRIPT, options) for options in ({"enable_thinking": False}, {}))
    assert tokenizer.decode(quick.prompt("1+2")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(slow.prompt("1+2")).endswith("assistant\n<think>\n")
    assert tokenizer.decode(quick.observation_ids(1, "1+2", ())).endswith("assistant\n<think>\n\n</think>\n\n")
    for name in ("enable_thinkin", "tokenize", "messages", "add_generation_prompt"):
        with pytest.raises(ConfigError, match=name):
            ChatFormat(tokenizer, SCRIPT, {name: False})
    with pytest.raises(ConfigError, match="has no chat template"):
        plain = THINKING.tokenizer()
        plain.chat_template = None
        ChatFormat(plain, SCRIPT, {"enable_thinking": False})


def played(*answers: str) -> list[Any]:
    """Turns of a thinking model that says these answers; a verifier wants "3"."""
    tokenizer = THINKING.tokenizer()
    chat = ChatFormat(tokenizer, SCRIPT.with_turns(len(answers)))
    said = iter([(*chat.ids(answer), tokenizer.eos_token_id) for answer in answers])

    class Sums:
        def verify(self, problem: Any, text: str) -> Verdict:
            return Verdict(Outcome.CORRECT if text.strip() == "3" else Outcome.INCORRECT, text)

    verifier = FunctionVerifier(lambda one, text: judge(Sums(), one, text).correct)  # type: ignore[arg-type]
    engine = ScriptedEngine(lambda request: next(said), tokenizer.eos_token_id)
    [episode] = roll_out(
        [RolloutRequest(problem("p", "1+2", "3"), 0, 0, "t", 0)],
        engine=engine,
        chat=chat,
        verifier=verifier,
        sampling=Sampling(1.0, 64),
    )
    return list(episode.turns)


def test_reasoning_that_the_prompt_opens_is_part_of_the_text() -> None:
    """Its markers are special tokens here; the ids stay as they were sampled."""
    first, second = played("2? no</think>\n\n3", "3, I guess")
    assert first.text == "<think>\n2? no</think>\n\n3" and first.verdict.correct
    assert second.text == "<think>\n3, I guess" and not second.verdict.correct
    tokenizer = THINKING.tokenizer()
    assert tokenizer.decode(first.ids) == "2? no</think>\n\n3<|im_end|>"


def test_given_attempts_close_the_reasoning_that_the_prompt_opens() -> None:
    tokenizer = THINKING.tokenizer()
    chat = ChatFormat(tokenizer, SCRIPT)
    assert tokenizer.decode(chat.given_ids("3")) == "</think>\n\n3<|im_end|>"
    quick = ChatFormat(tokenizer, SCRIPT, {"enable_thinking": False})
    assert quick.text(quick.given_ids("3")) == "3"


MISTRAL = replace(
    CHATML,
    name="Mistral v3: the system message opens the last user message",
    template="{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}"
    "[INST] {% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
    bos="<s>",
    end="</s>",
    special=(),
)


def test_the_system_message_stands_in_the_first_turn_alone() -> None:
    tokenizer = MISTRAL.tokenizer()
    chat = ChatFormat(tokenizer, replace(SCRIPT, system="Be brief."))
    assert tokenizer.decode(chat.prompt("1+2")) == "<s>[INST] Be brief.\n\n1+2[/INST]"
    assert tokenizer.decode(chat.observation_ids(1, "1+2", (tokenizer.eos_token_id,))) == "[INST] Again.[/INST]"


def test_sampling_stops_at_the_templates_end() -> None:
    """A model that only ever says ``<|im_end|>`` ends at once, although its tokenizer names another end token."""
    family = LOST["<|im_end|>"]
    tokenizer = family.tokenizer()
    hf = of_family("Llama", tied=False, vocab_size=len(tokenizer), cpu_kernels=False).model
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    hf.lm_head.weight.data.zero_()
    model = LanguageModel(hf, tokenizer, cpu_kernels=False)
    original = model.logits
    model.logits = lambda hidden: original(hidden).index_add(-1, torch.tensor([end]), 50 + 0 * hidden[..., :1])  # type: ignore[method-assign]
    chat = ChatFormat(tokenizer, SCRIPT)
    [episode] = roll_out(
        [RolloutRequest(problem("p", "1+2", "3"), 0, 0, "t", 0)],
        engine=HFEngine(model, max_num_seqs=4),
        chat=chat,
        verifier=FunctionVerifier(lambda one, text: False),
        sampling=Sampling(1.0, 8),
    )
    assert [turn.stop for turn in episode.turns] == [StopReason.END] * 2 and episode.turns[0].ids == (end,)
