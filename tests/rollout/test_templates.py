"""Chat templates of real families: what the model reads, by hand, token by token.

The templates are written for these tests and have the structure of the originals; the tokenizer has a token for every
character, so decoding ids gives back exactly what they spell.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.engines import ScriptedEngine
from support.episodes import problem
from support.models import tiny_model
from support.verifiers import FunctionVerifier

from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.models.chat_template import check_options, end_of_turn
from selfcorrect.reasoning import final_part
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, check_context, roll_out
from selfcorrect.rollout.rollouter import TokenRollouter
from selfcorrect.script import Script, UserTurn
from selfcorrect.types import Role, StopReason

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

    def tokenizer(self, *, eos: str | None = None) -> Any:
        """The tokenizer; ``eos`` replaces the end token that it names, as in a copy that lost the right one."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        named = list(dict.fromkeys(token for token in (self.bos, self.end, eos, *self.special) if token is not None))
        vocabulary = {token: i for i, token in enumerate(["<pad>", *named, *string.printable])}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        core.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<pad>",
            bos_token=self.bos,
            eos_token=eos or self.end,
            additional_special_tokens=[self.end, *self.special],
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
MISTRAL = Family(
    "Mistral v3: the system message stands in the last user message",
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}[INST] "
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}",
    bos="<s>",
    end="</s>",
    special=("[INST]", "[/INST]"),
    prompt="<s>[INST] 1+2[/INST]",
    observation_ids="[INST] Again.[/INST]",
    system="<s>[INST] Be brief.\n\n1+2[/INST]",
)
FAMILIES = [CHATML, LLAMA2, LLAMA3, GEMMA, QWEN3, ZEPHYR, MISTRAL]
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


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_written_conversation_reads_as_one_that_was_sampled(family: Family, system: str | None) -> None:
    tokenizer = family.tokenizer()
    chat = ChatFormat(tokenizer, Script(revise="Never said.", system="Nor this."))
    turns = chat.written_turns(system, ["1+2", "Again.", "Again."], ["3", " 4", "5"])
    assert [tokenizer.decode(ids) for _, ids in turns] == [reply + family.end for reply in ("3", " 4", "5")]
    opening = family.system if system else family.prompt
    assert [tokenizer.decode(before) for before, _ in turns] == [opening, *[family.observation_ids] * 2]


def test_another_end_token_than_the_templates_stays_and_the_templates_follows() -> None:
    said = "3<|endoftext|>"
    expected = f"{CHATML.prompt}{said}<|im_end|>{CHATML.observation_ids}"
    assert rows(CHATML, SCRIPT, [said, said])[1] == expected


# --- the end of a turn --------------------------------------------------------------------------------------------------

PHI3 = Family(
    "Phi-3",
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    end="<|end|>",
    special=("<|user|>", "<|assistant|>"),
    prompt="<|user|>\n1+2<|end|>\n<|assistant|>\n",
    observation_ids="\n<|user|>\nAgain.<|end|>\n<|assistant|>\n",
    system="",
)
HARMONY = Family(
    "gpt-oss: parts of one turn are separated by another token than the one that ends it",
    "{% for m in messages %}{% if m['role'] == 'user' %}<|start|>user<|message|>{{ m['content'] }}<|end|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    end="<|return|>",
    special=("<|start|>", "<|message|>", "<|channel|>", "<|end|>"),
    prompt="<|start|>user<|message|>1+2<|end|><|start|>assistant",
    observation_ids="",
    system="",
)
LAST_TURN_OPEN = Family(
    "the last turn is left open",
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if not loop.last %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    end="<|end|>",
    prompt="",
    observation_ids="",
    system="",
)


@pytest.mark.parametrize(
    "family", [CHATML, LLAMA2, LLAMA3, GEMMA, QWEN3, MISTRAL, PHI3, HARMONY, LAST_TURN_OPEN], ids=lambda f: f.name
)
def test_the_template_says_where_a_turn_ends_whatever_the_tokenizer_says(family: Family) -> None:
    says_itself = "eos_token" in family.template and family is not PHI3
    tokenizer = family.tokenizer(eos=None if says_itself else "<|endoftext|>")
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == family.end


def test_a_model_ends_its_turns_there_too(caplog: pytest.LogCaptureFixture) -> None:
    """An end token that neither tokenizer nor generation settings name: the engine used to run past it."""
    tokenizer = CHATML.tokenizer(eos="<|endoftext|>")
    model = tiny_model(0, tokenizer=tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.end_ids == {end, tokenizer.eos_token_id}
    with torch.no_grad():
        model.model.lm_head.weight[end] *= 8
    prompt = ChatFormat(tokenizer, SCRIPT).prompt("1+2")
    asked = [Request(prompt, RolloutRequest(problem("p", "1+2"), g, 0, "test", 0).key(0)) for g in range(30)]
    done = HFEngine(model).generate(asked, Sampling(1.0, 30))
    ended = [c for c in done if end in c.ids]
    assert len(ended) > 10
    assert all(c.stop is StopReason.END and c.ids.index(end) == len(c.ids) - 1 for c in ended)
    assert not caplog.records


def test_where_the_end_is_ordinary_text_somebody_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = CHATML.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} ~over~\n{% endfor %}"
    assert end_of_turn(tokenizer) is None
    for _ in range(2):
        model = tiny_model(0, tokenizer=tokenizer)
    assert model.end_ids == {tokenizer.eos_token_id}
    (told,) = [record.getMessage() for record in caplog.records]
    assert "'~over~'" in told and "<|im_end|> alone" in told and "--stop" in told


def test_a_supplied_first_attempt_ends_as_the_template_ends_it() -> None:
    tokenizer = CHATML.tokenizer(eos="<|endoftext|>")
    draft = TokenRollouter(ScriptedEngine(lambda request: [], 0), tokenizer).given_draft("3")
    assert tokenizer.decode(draft.ids) == "3<|im_end|>"


# --- the start of a text ------------------------------------------------------------------------------------------------


def llama_base() -> Any:
    """A tokenizer without a template whose post-processor puts <s> before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = LLAMA2.tokenizer()
    tokenizer.chat_template = None
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return tokenizer


def test_without_a_template_a_prompt_starts_as_the_tokenizer_starts_a_text() -> None:
    tokenizer = llama_base()
    chat = ChatFormat(tokenizer, SCRIPT)
    assert list(chat.prompt("1+2")) == tokenizer("1+2\n")["input_ids"]
    assert tokenizer.decode(chat.prompt("1+2")) == "<s>1+2\n"
    assert tokenizer.decode(chat.prompt("<s>1+2")) == "<s>1+2\n", "once"
    assert tokenizer.decode(chat.observation_ids(1, "1+2", ())) == "</s>\nAgain.\n", "at the very start alone"
    longest = check_context([problem("p", "1+2")], chat, 5, 1000)
    assert longest == len("1+2\n") + 1 + 2 * 5 + len("\nAgain.\n") + 1, "it counts"


def test_a_template_that_writes_the_start_itself_gets_no_second() -> None:
    tokenizer = llama_base()
    tokenizer.chat_template = LLAMA2.template
    assert tokenizer.decode(ChatFormat(tokenizer, SCRIPT).prompt("1+2")) == LLAMA2.prompt
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    assert tokenizer.decode(ChatFormat(tokenizer, SCRIPT).prompt("1+2")) == "1+2</s>", "a template's word is final"


# --- thinking -----------------------------------------------------------------------------------------------------------

THINKING = Family(
    "a thinking template that opens reasoning in the prompt, unless it is told not to",
    "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}",
    end="<|im_end|>",
    special=("<|im_start|>",),
    prompt="<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n<think>\n",
    observation_ids="\n<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n<think>\n",
    system="",
)
OFF = {"enable_thinking": False}


def test_options_of_the_template_are_rendered_in_every_turn() -> None:
    tokenizer = THINKING.tokenizer()
    chat = ChatFormat(tokenizer, SCRIPT, OFF)
    closed = "<think>\n\n</think>\n\n"
    assert tokenizer.decode(chat.prompt("1+2")) == THINKING.prompt.replace("<think>\n", closed)
    assert tokenizer.decode(chat.observation_ids(1, "", chat.ids("3<|im_end|>"))) == THINKING.observation_ids.replace(
        "<think>\n", closed
    )


@pytest.mark.parametrize(
    "name", ["enable_thinkin", "role", "content", "tools", "chat_template", "tokenize", "messages", "eos_token"]
)
def test_an_option_that_the_template_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"chat_template_kwargs sets '{name}'"):
        ChatFormat(THINKING.tokenizer(), SCRIPT, {name: True})
    with pytest.raises(ConfigError, match="no chat template"):
        ChatFormat(llama_base(), SCRIPT, OFF)


def test_an_option_with_a_default_of_the_templates_own_is_known() -> None:
    tokenizer = THINKING.tokenizer()
    tokenizer.chat_template = (
        "{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}Today is {{ date_string }}. "
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    )
    chat = ChatFormat(tokenizer, SCRIPT, {"date_string": "1 May 2025"})
    assert tokenizer.decode(chat.prompt("1+2")) == "Today is 1 May 2025. 1+2<|im_end|>"


def verified(tokenizer: Any, answers: Sequence[str], **options: Any) -> list[str]:
    """The texts that the verifier reads, of an episode in which the model writes ``answers``."""
    spelt = [tuple(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
    (played,) = roll_out(
        [RolloutRequest(problem("p", "1+2"), 0, 0, "test", 0)],
        engine=ScriptedEngine(lambda request: spelt[request.key.turn], tokenizer.eos_token_id),
        chat=ChatFormat(tokenizer, SCRIPT, options),
        verifier=FunctionVerifier(),
        sampling=Sampling(1.0, 200),
    )
    assert [turn.ids for turn in played.turns] == spelt, "the ids stay as they were sampled"
    return [turn.text for turn in played.turns]


def test_reasoning_that_the_prompt_opens_is_seen_in_the_text() -> None:
    tokenizer = THINKING.tokenizer()
    unfinished, finished = verified(tokenizer, ["It may be 12, or", "One and two.\n</think>\n\n3<|im_end|>"])
    assert unfinished == "<think>\nIt may be 12, or" and final_part(unfinished) is None
    assert finished == "<think>\nOne and two.\n</think>\n\n3" and final_part(finished) == "\n\n3"
    assert verified(tokenizer, ["12", "3<|im_end|>"], **OFF) == ["12", "3"]
    assert verified(tokenizer, ["<think>12", "<think>\n3"]) == ["<think>12", "<think>\n3"], "not twice"


def test_turn_two_keeps_the_reasoning_that_the_template_would_strip() -> None:
    said = "One and two.\n</think>\n\n3<|im_end|>"
    assert rows(THINKING, SCRIPT, [said, said])[1] == THINKING.prompt + said + THINKING.observation_ids


def test_a_supplied_first_attempt_is_no_reasoning() -> None:
    tokenizer = THINKING.tokenizer()
    draft = TokenRollouter(ScriptedEngine(lambda request: [], 0), tokenizer).given_draft("3")
    assert tokenizer.decode(draft.ids) == "</think>\n\n3<|im_end|>"
    assert final_part(ChatFormat(tokenizer, SCRIPT).text(draft.ids)) == "\n\n3"


def test_markers_of_reasoning_survive_though_they_are_special_tokens() -> None:
    template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    marked = replace(LLAMA2, template=template, special=("[THINK]", "[/THINK]", "[REF]"))
    texts = verified(marked.tokenizer(), ["[THINK]Is it 12?[/THINK]3[REF]</s>", "[THINK]Is it 12?"])
    assert texts == ["[THINK]Is it 12?[/THINK]3", "[THINK]Is it 12?"]
    assert [final_part(text) for text in texts] == ["3", None]
    said = "<|channel|>analysis<|message|>12?<|end|><|start|>assistant<|channel|>final<|message|>3<|return|>"
    texts = verified(HARMONY.tokenizer(), [said, "<|channel|>analysis<|message|>12?"])
    assert [final_part(text) for text in texts] == ["3", None]


# --- templates that fail --------------------------------------------------------------------------------------------------

FAILING = {
    "not closed": "{% for m in messages %}",
    "unknown filter": "{{ messages | sentence }}",
    "refuses everything": "{{ raise_exception('only tools may speak') }}",
    "counts for ever": "{% for i in range(1000000000) %}a{% endfor %}",
    "looks behind": "{{ messages.__class__.__mro__ }}",
    "undefined": "{{ tools[0].name }}",
    "adds a number to a list": "{{ messages + 1 }}",
    "divides by zero": "{{ 1 / (messages | length - messages | length) }}",
    "includes a file": "{% include '/etc/passwd' %}",
    "half of a character": "{{ '\\ud800' }}",
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_is_named_with_its_reason(name: str) -> None:
    tokenizer = CHATML.tokenizer()
    tokenizer.chat_template = FAILING[name]
    with pytest.raises(ModelError, match=r"chat template cannot render a conversation of the roles user"):
        ChatFormat(tokenizer, SCRIPT).prompt("1+2")
    with pytest.raises(ModelError, match="chat template cannot render"):
        check_context([problem("p", "1+2")], ChatFormat(tokenizer, SCRIPT), 5, 1000)
    assert end_of_turn(tokenizer) is None
    with pytest.raises(ConfigError, match="does not use"):
        check_options(tokenizer, {"unheard_of": True})
