"""Verifying drafts on prompts of their own: a problem, an attempt at it, and the question whether it is correct.

The model sees neither the conversation in which the draft was made nor that it is its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfcorrect.engines import Completion, Engine, Request, Sampling
from selfcorrect.errors import ContextError
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest
from selfcorrect.script import judgement
from selfcorrect.types import Episode, Problem, Role, Turn


def verify_drafts(
    requests: Sequence[tuple[RolloutRequest, Episode]], *, engine: Engine, chat: ChatFormat, sampling: Sampling
) -> list[Episode]:
    """Sample one verification of the first attempt of each episode; the results come in the order of the requests.

    A result has the attempts of ``chat.script``, then the verification. Its first attempt is the draft, which nobody samples
    here: its ids are empty, and the whole prompt stands before it. The other attempts are skipped.
    """
    prompts = [chat.draft_prompt(draft.problem.prompt, draft.turns[0].ids) for _, draft in requests]
    asked = [Request(prompt, request.key(0)) for prompt, (request, _) in zip(prompts, requests, strict=True)]
    completions = engine.generate(asked, sampling) if asked else []
    return [
        Episode(request.problem, request.sample, _turns(prompt, draft, done, chat))
        for prompt, (request, draft), done in zip(prompts, requests, completions, strict=True)
    ]


def _turns(prompt: tuple[int, ...], of: Episode, done: Completion, chat: ChatFormat) -> tuple[Turn, ...]:
    first, text = of.turns[0], chat.text(done.ids)
    draft = Turn(prompt, (), (), first.text, first.stop, first.verdict, online=False, counted=0, copied=True)
    skipped = [Turn.not_taken(Role.ATTEMPT, [draft])] * (chat.script.turns - 1)
    said = judgement(text, *chat.asked_of_drafts.phrases)
    verification = Turn((), done.ids, done.logprobs, text, done.stop, None, role=Role.VERIFICATION, said=said)
    return (draft, *skipped, verification)


def check_draft_context(problems: Sequence[Problem], chat: ChatFormat, max_tokens: int, context_limit: int) -> int:
    """Return the length of the longest possible verification of a draft of these problems, in tokens.

    Raises:
        ContextError: it would exceed the model's context.
    """
    longest = max(problems, key=lambda problem: len(chat.draft_prompt(problem.prompt, ())))
    prompt = len(chat.draft_prompt(longest.prompt, ()))
    total = prompt + 2 * max_tokens
    if total > context_limit:
        raise ContextError(
            f"the verification of a draft could take {total} tokens (message {prompt} of problem {longest.id!r}, draft and "
            f"verification of at most {max_tokens} each), but the model's context is {context_limit}: lower rollout.max_tokens, "
            "or leave out long problems."
        )
    return total
