"""Chat templates of real families: what the model reads, by hand, token by token.

The templates are written for these tests and have the structure of the originals; the tokenizer has a token for every
character, so decoding ids gives back exactly what they spell.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from support.engines import ScriptedEngine
from support.episodes import problem
from support.verifiers import FunctionVerifier

from selfcorrect.engines import Sampling
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, roll_out
from selfcorrect.script import Script, UserTurn
from selfcorrect.types import Role

SMOL = "You are a helpful assistant."


@dataclass(frozen=True)
class Family:
    """A template, its tokens, and by hand: the prompt for "1+2", and what stands around the answer of a turn.

    ``observation_ids`` is what follows an answer that ended by itself, up to the next one, where the user says "Again.";
    ``system`` the prompt with the system message "Be brief.".
    """

    name: str
    template: str
    end: str
    prompt: str
    observation_ids: str
    system: str
    special: tuple[str, ...] = ()
    bos: str | None = None

    def tokenizer(self) -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        named = [token for token in (self.bos, self.end, *self.special) if token is not None]
        vocabulary = {token: i for i, token in enumerate(["<pad>", *named, *string.printable])}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        core.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<pad>",
            bos_token=self.bos,
            eos_token=self.end,
            additional_special_tokens=list(self.special),
            chat_template=self.template,
            clean_up_tokenization_spaces=False,
        )


CHATML = Family(
    "ChatML (SmolLM2, Qwen2.5)",
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    end="<|im_end|>",
    special=("<|im_start|>", "<|endoftext|>"),
    prompt=f"<|im_start|>system\n{SMOL}<|im_end|>\n<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n",
    observation_ids="\n<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n",
    system="<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n",
)
LLAMA2 = Family(
    "Llama 2",
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    bos="<s>",
    end="</s>",
    prompt="<s>[INST] 1+2 [/INST]",
    observation_ids="<s>[INST] Again. [/INST]",
    system="<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n1+2 [/INST]",
)
LLAMA3 = Family(
    "Llama 3",
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    bos="<|begin_of_text|>",
    end="<|eot_id|>",
    special=("<|start_header_id|>", "<|end_header_id|>"),
    prompt="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1+2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    observation_ids="<|start_header_id|>user<|end_header_id|>\n\nAgain.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n1+2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
GEMMA = Family(
    "Gemma",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    bos="<bos>",
    end="<end_of_turn>",
    special=("<start_of_turn>",),
    prompt="<bos><start_of_turn>user\n1+2<end_of_turn>\n<start_of_turn>model\n",
    observation_ids="\n<start_of_turn>user\nAgain.<end_of_turn>\n<start_of_turn>model\n",
    system="<bos><start_of_turn>user\nBe brief.\n\n1+2<end_of_turn>\n<start_of_turn>model\n",
)
QWEN3 = Family(
    "Qwen3-like: reasoning of earlier turns is stripped",
    "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    end="<|im_end|>",
    special=("<|im_start|>",),
    prompt="<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n",
    observation_ids="\n<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n",
    system="<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n",
)
ZEPHYR = Family(
    "Zephyr: the system message is dropped in silence here",
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    end="</s>",
    prompt="<|user|>\n1+2</s>\n<|assistant|>\n",
    observation_ids="\n<|user|>\nAgain.</s>\n<|assistant|>\n",
    system="<|user|>\nBe brief.\n\n1+2</s>\n<|assistant|>\n",
)
FAMILIES = [CHATML, LLAMA2, LLAMA3, GEMMA, QWEN3, ZEPHYR]
ANSWERS = {
    "plain": "3",
    "white space at both ends": " 3\n",
    "reasoning": "<think>\nTwo and one.\n</think>\n\n3",
}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


def rows(family: Family, script: Script, answers: Sequence[str]) -> list[str]:
    """What the model read before each of its turns, and last the whole episode, spelt out."""
    tokenizer = family.tokenizer()
    spelt = [tuple(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
    engine = ScriptedEngine(lambda request: spelt[request.key.turn], tokenizer.eos_token_id)
    (played,) = roll_out(
        [RolloutRequest(problem("p", "1+2"), 0, 0, "test", 0)],
        engine=engine,
        chat=ChatFormat(tokenizer, script),
        verifier=FunctionVerifier(),
        sampling=Sampling(1.0, 100),
    )
    for request, answer in zip(engine.asked, spelt, strict=True):
        assert played.ids[: len(request.ids) + len(answer)] == (*request.ids, *answer)  # in ids, not only in letters
    return [tokenizer.decode(request.ids) for request in engine.asked] + [tokenizer.decode(played.ids)]


SCRIPT = Script(revise="Again.")


@pytest.mark.pitfall(8)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_turn_two_continues_the_sampled_ids_and_the_end_stands_once(family: Family, answer: str) -> None:
    said = answer + family.end
    expected = family.prompt + said + family.observation_ids
    assert rows(family, SCRIPT, [said, said]) == [family.prompt, expected, expected + said]


@pytest.mark.pitfall(8)
def test_a_truncated_turn_gets_the_end_that_it_lacks(family: Family) -> None:
    expected = f"{family.prompt}3{family.end}{family.observation_ids}"
    assert rows(family, SCRIPT, ["3", "3"]) == [family.prompt, expected, f"{expected}3"]


def test_three_turns_and_feedback(family: Family) -> None:
    script = Script(revise=("Again.", UserTurn("Again.", Role.FEEDBACK), "Again."), turns=3)
    part = f"3{family.end}{family.observation_ids}"
    said = f"3{family.end}"
    expected = [family.prompt, *(family.prompt + part * k for k in (1, 2, 3)), family.prompt + part * 3 + said]
    assert rows(family, script, [said] * 4) == expected


def test_a_system_message_is_read_whether_or_not_the_template_has_a_role_for_it(family: Family) -> None:
    said = f"3{family.end}"
    script = Script(revise="Again.", system="Be brief.")
    expected = family.system + said + family.observation_ids
    assert rows(family, script, [said, said]) == [family.system, expected, expected + said]


def test_another_end_token_than_the_templates_stays_and_the_templates_follows() -> None:
    said = "3<|endoftext|>"
    expected = f"{CHATML.prompt}{said}<|im_end|>{CHATML.observation_ids}"
    assert rows(CHATML, SCRIPT, [said, said])[1] == expected
