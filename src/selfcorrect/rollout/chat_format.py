"""From a script to token ids: the prompt of turn 1 and the observation between turns.

Token in, token out: sampled ids are never decoded and tokenised again. The *observation* is what the chat template puts
between two attempts. To find it, a conversation is rendered with a stand-in for the attempt; the observation is the text
after the stand-in. Turn 2's context therefore always extends the ids of turn 1 (docs/method.md, section 1), even where
the template would change an earlier attempt (trim it, or strip its reasoning).

Template families differ in four ways:

1. White space before the end token (Llama 2's ``answer </s>``) is left out: a model ends its turn with the token itself.
2. White space after it (ChatML's newline) is part of the observation.
3. Without a system role (Gemma's template rejects it, others drop it silently), the system message opens the first user
   message, followed by a blank line.
4. An end token other than the template's (``<|endoftext|>`` in ChatML) stays as sampled, and the template's follows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from selfcorrect.errors import ModelError
from selfcorrect.script import Script

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
)
"""The template of a base model without one: each message on its own line."""

STAND_IN = "@@ATTEMPT@@"
SYSTEM_STAND_IN = "@@SYSTEM@@"

PROMPTS_KEPT = 4096
"""The number of cached prompts; all samples of a problem share one."""


class ChatFormat:
    """A script rendered in a tokenizer's chat template, as token ids.

    Args:
        tokenizer: a Hugging Face tokenizer.
        script: the user's message in each turn.

    Raises:
        ModelError: the template drops or repeats the assistant's text, so no observation can be found.
    """

    def __init__(self, tokenizer: Any, script: Script) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self._system_role = script.system is None or self._takes_system_role()
        self._repeats_problem = any("{prompt}" in turn.text for turn in script.later)
        self.prompt = lru_cache(PROMPTS_KEPT)(self._prompt)
        self._observation_ids = lru_cache(PROMPTS_KEPT)(self._make_observation_ids)

    def _prompt(self, problem_prompt: str) -> tuple[int, ...]:
        """Return the ids that the first attempt continues."""
        return self.ids(self._render(self._messages(0, problem_prompt)))

    def observation_ids(self, turn: int, problem_prompt: str, previous_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids between turn ``turn - 1``, whose sampled ids are ``previous_ids``, and turn ``turn``.

        The observation opens with the template's end-of-turn id, if it has one. Where the model sampled that id itself, it
        is not repeated. Where the turn was truncated, the id belongs to the observation, so it is never trained.
        """
        observation_ids = self._observation_ids(turn, problem_prompt if self._repeats_problem else "problem")
        return (
            observation_ids[1:]
            if previous_ids and observation_ids and previous_ids[-1] == observation_ids[0]
            else observation_ids
        )

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of rendered text; special tokens are recognised, and none is added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: tuple[int, ...]) -> str:
        """Return the text that the verifier reads: the ids decoded without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _make_observation_ids(self, turn: int, problem_prompt: str) -> tuple[int, ...]:
        rendered = self._render(self._messages(turn, problem_prompt))
        if rendered.count(STAND_IN) != turn:
            raise ModelError(
                f"the chat template rewrites earlier attempts ({turn} were given, the rendered conversation has "
                f"{rendered.count(STAND_IN)}), so a second attempt cannot extend the sampled ids: use another template."
            )
        rest = rendered.rpartition(STAND_IN)[2]
        end = self.tokenizer.eos_token
        return self.ids(rest.lstrip() if end and rest.lstrip().startswith(end) else rest)

    def _messages(self, turn: int, problem_prompt: str) -> list[dict[str, str]]:
        first, *later = self.script.user_turns(problem_prompt)[: turn + 1]
        messages = [{"role": "user", "content": first.text}]
        if self.script.system:
            messages = _with_system(self.script.system, messages, role=self._system_role)
        for said in later:
            messages.append({"role": "assistant", "content": STAND_IN})
            messages.append({"role": "user", "content": said.text})
        return messages

    def _takes_system_role(self) -> bool:
        """Return whether the template renders a system message; some templates reject or drop it."""
        try:
            rendered = self._render(_with_system(SYSTEM_STAND_IN, [{"role": "user", "content": "problem"}], role=True))
        except TemplateError:
            return False
        return SYSTEM_STAND_IN in rendered

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        )


def _with_system(system: str, messages: list[dict[str, str]], *, role: bool) -> list[dict[str, str]]:
    """Return the conversation with a system message, in its own role or at the head of the first user message."""
    if role:
        return [{"role": "system", "content": system}, *messages]
    first, *rest = messages
    return [{**first, "content": f"{system}\n\n{first['content']}"}, *rest]
