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

Two more rules. Without a chat template, the prompt starts as the tokenizer's own post-processor starts every text (base
models of Llama, Gemma and Mistral read nothing sensible without ``<s>``); a template writes such a token itself. And
where the template opens reasoning in the prompt, the text of a turn opens with that marker, although it was not sampled,
so that unfinished reasoning is recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from selfcorrect.errors import ModelError
from selfcorrect.models.chat_template import STAND_IN, check_options, end_of_turn, render, start_ids
from selfcorrect.reasoning import MARKERS, opened_by
from selfcorrect.script import DRAFT_REQUEST, Script, UserTurn
from selfcorrect.types import StopReason

SYSTEM_STAND_IN = "@@SYSTEM@@"

PROMPTS_KEPT = 4096
"""The number of cached prompts; all samples of a problem share one."""


class ChatFormat:
    """A script rendered in a tokenizer's chat template, as token ids.

    Args:
        tokenizer: a Hugging Face tokenizer.
        script: the user's message in each turn.
        options: variables of the chat template, such as ``enable_thinking``.
        asked_of_drafts: the message of a conversation in which the model verifies a draft (`draft_prompt`).

    Raises:
        ModelError: the template cannot be rendered, or drops or repeats the assistant's text, so no observation can be found.
        ConfigError: the template does not use one of the options.
    """

    def __init__(
        self,
        tokenizer: Any,
        script: Script,
        options: Mapping[str, Any] | None = None,
        asked_of_drafts: UserTurn = DRAFT_REQUEST,
    ) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.options = dict(options or {})
        self.asked_of_drafts = asked_of_drafts
        check_options(tokenizer, self.options)
        self._repeats_problem = any("{prompt}" in turn.text for turn in script.later)
        self.prompt = lru_cache(PROMPTS_KEPT)(self._prompt)
        self._observation_ids = lru_cache(PROMPTS_KEPT)(self._make_observation_ids)
        self._around_draft = lru_cache(PROMPTS_KEPT)(self._make_around_draft)

    def rendered(self, problem_prompt: str) -> str:
        """Return the first question as the chat template renders it."""
        return self._opening(self.script.system, self._said(0, problem_prompt)[0])

    def _prompt(self, problem_prompt: str) -> tuple[int, ...]:
        """Return the ids that the first attempt continues."""
        return self._started(self.rendered(problem_prompt))

    def draft_prompt(self, problem_prompt: str, draft: Sequence[int]) -> tuple[int, ...]:
        """Return the ids that the verification of a draft continues: a first message that shows the problem and the draft.

        The draft's own ids stand in it, without special tokens other than those of reasoning, as `text` reads them. So the
        prompt has no more tokens than the message and the draft have together.
        """
        before, after = self._around_draft(problem_prompt)
        left_out = self._special_ids - self._reasoning_ids
        return (*before, *(i for i in draft if i not in left_out), *after)

    def _make_around_draft(self, problem_prompt: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids before and after the draft. The problem may hold any text, so the draft's place is found first."""
        head, tail = (part.replace("{prompt}", problem_prompt) for part in self.asked_of_drafts.text.split("{attempt}"))
        rendered = self._opening(self.script.system, f"{head}{STAND_IN}{tail}")
        before, _, after = rendered.partition(STAND_IN)
        if rendered.count(STAND_IN) != 1:
            raise ModelError(
                f"the chat template shows the message that asks to verify a draft {rendered.count(STAND_IN)} times, so the draft "
                "has no place of its own: use another template."
            )
        return self._started(before), self.ids(after)

    def written_turns(
        self, system: str | None, users: Sequence[str], replies: Sequence[str]
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return a written conversation as ids: for each turn what precedes the reply, and the reply with its end.

        The user's messages and the system message are those given, not the script's; ``users`` and ``replies`` have one length.
        """
        before, turns = self._started(self._opening(system, users[0])), []
        for k, reply in enumerate(replies, 1):
            turns.append((before, self.given_ids(reply)))
            if k < len(users):
                before = _after(turns[-1][1], self._between(users[: k + 1]))
        return turns

    def _started(self, rendered: str) -> tuple[int, ...]:
        ids = self.ids(rendered)
        start = () if self.tokenizer.chat_template else start_ids(self.tokenizer)
        return ids if ids[: len(start)] == start else (*start, *ids)

    def observation_ids(self, turn: int, problem_prompt: str, previous_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ids between turn ``turn - 1``, whose sampled ids are ``previous_ids``, and turn ``turn``.

        The observation opens with the template's end-of-turn id, if it has one. Where the model sampled that id itself, it
        is not repeated. Where the turn was truncated, the id belongs to the observation, so it is never trained.
        """
        return _after(previous_ids, self._observation_ids(turn, problem_prompt if self._repeats_problem else "problem"))

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of rendered text; special tokens are recognised, and none is added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: tuple[int, ...]) -> str:
        """Return the text that the verifier reads: the ids decoded without special tokens other than those of reasoning.

        Where the prompt opens reasoning, the text opens with that marker.
        """
        text = self._decoded(ids).strip()
        opening = self.opened
        return text if opening is None or text.startswith(opening) else f"{opening}\n{text}"

    @cached_property
    def opened(self) -> str | None:
        """The marker of the reasoning that the prompt opens; None if the template leaves that to the model."""
        return opened_by(self._render([{"role": "user", "content": "problem"}]))

    def given_ids(self, text: str) -> tuple[int, ...]:
        """Return a text from elsewhere as the ids of a turn, with its end; any reasoning that the prompt opens is closed."""
        closing = "" if self.opened is None else f"{dict(MARKERS)[self.opened]}\n\n"
        return (*self.ids(closing + text), self.tokenizer.eos_token_id if self._end is None else self._end)

    @cached_property
    def _end(self) -> int | None:
        return end_of_turn(self.tokenizer)

    def _decoded(self, ids: tuple[int, ...]) -> str:
        if not self._reasoning_ids:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))
        left_out = self._special_ids - self._reasoning_ids
        return str(self.tokenizer.decode([i for i in ids if i not in left_out], skip_special_tokens=False))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset({*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})

    @cached_property
    def _reasoning_ids(self) -> frozenset[int]:
        """The special tokens that are, or are part of, a marker of reasoning."""
        markers = [marker for pair in MARKERS for marker in pair]
        texts = {i: str(self.tokenizer.convert_ids_to_tokens(i)) for i in self._special_ids}
        return frozenset(i for i, text in texts.items() if text and any(text in marker for marker in markers))

    def _make_observation_ids(self, turn: int, problem_prompt: str) -> tuple[int, ...]:
        return self._between(self._said(turn, problem_prompt))

    def _between(self, users: Sequence[str]) -> tuple[int, ...]:
        """Return the ids between the last two turns of a conversation in which the user says these messages."""
        # Without the system message, which the prompt has: some templates (Mistral's) put it into the last user message.
        rendered, earlier = self._render(_chat(users)), len(users) - 1
        if rendered.count(STAND_IN) != earlier:
            raise ModelError(
                f"the chat template rewrites earlier attempts ({earlier} were given, the rendered conversation has "
                f"{rendered.count(STAND_IN)}), so a second attempt cannot extend the sampled ids: use another template."
            )
        rest = rendered.rpartition(STAND_IN)[2]
        return self.ids(rest.lstrip() if self._closes(rest.lstrip()) else rest)

    def _closes(self, text: str) -> bool:
        """Return whether a text begins with an end token."""
        ends = {self.tokenizer.eos_token_id, self._end} - {None}
        known = [self.tokenizer.convert_ids_to_tokens(end) for end in ends]
        return any(token and text.startswith(token) for token in known)

    def _said(self, turn: int, problem_prompt: str) -> list[str]:
        """Return the user's messages up to the one before a turn."""
        return [said.text for said in self.script.user_turns(problem_prompt)[: turn + 1]]

    def _opening(self, system: str | None, first: str) -> str:
        messages = _chat([first])
        return self._render(_with_system(system, messages, role=self._takes_system_role) if system else messages)

    @cached_property
    def _takes_system_role(self) -> bool:
        """Return whether the template renders a system message; some templates reject or drop it."""
        try:
            rendered = self._render(_with_system(SYSTEM_STAND_IN, [{"role": "user", "content": "problem"}], role=True))
        except ModelError:
            return False
        return SYSTEM_STAND_IN in rendered

    def _render(self, messages: list[dict[str, str]]) -> str:
        return render(self.tokenizer, messages, self.options)


def _after(previous_ids: Sequence[int], observation_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return an observation without the end-of-turn id that it opens with, if the turn before has that id itself."""
    ended = previous_ids and observation_ids and previous_ids[-1] == observation_ids[0]
    return observation_ids[1:] if ended else observation_ids


def _chat(users: Sequence[str]) -> list[dict[str, str]]:
    """Return the user's messages, with a stand-in for every turn between them."""
    first, *later = ({"role": "user", "content": text} for text in users)
    return [first, *(message for said in later for message in ({"role": "assistant", "content": STAND_IN}, said))]


def draft_ids(chat: ChatFormat, text: str, limit: int | None = None) -> tuple[tuple[int, ...], StopReason]:
    """Return a text's ids and the end of the turn, or the first ``limit`` of them as a truncated turn."""
    ids = chat.given_ids(text)
    cut = limit is not None and len(ids) > limit
    return ids[:limit], StopReason.LENGTH if cut else StopReason.END


def _with_system(system: str, messages: list[dict[str, str]], *, role: bool) -> list[dict[str, str]]:
    """Return the conversation with a system message, in its own role or at the head of the first user message."""
    if role:
        return [{"role": "system", "content": system}, *messages]
    first, *rest = messages
    return [{**first, "content": f"{system}\n\n{first['content']}"}, *rest]
