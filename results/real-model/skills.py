"""The second skill of a cold start on the family `order`: transcripts that teach it, and how well a model has learnt it.

A problem asks for the one of two orders that ends in a digit. Two questions about a shown answer stand where the instruction
for a second attempt will stand:

- *verdict*: is this the order asked for, or is it the other one?
- *orders*: write the whole solution again, in this or in the other order; only where neither order is asked for.

No transcript has an incorrect attempt followed by a correct one, and none of these two has the task's own instruction. A third
does, and shows its form where nothing is to be corrected:

- *kept*: a correct answer, checked in words and written again as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfcorrect import Problem
from selfcorrect.engines.base import Request, Sampling
from selfcorrect.engines.hf import HFEngine
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import SampleKey, generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.worked_steps import SYSTEM
from selfcorrect.training.transcripts import transcript_of

Lines = Sequence[Mapping[str, Any]]
"""Messages of a conversation, as a file of demonstrations holds them."""

VERDICT = "Check the last digit. Is this the order asked for, or is it the other one?"
CHECKED = "Check the last digit of the answer, then write the whole solution again."
"""The task's own instruction for a second attempt that begins with the check."""
AGAIN = "Write the whole solution again, in {} order."
ASKED_FOR = "Write the whole solution again, in the order asked for."
"""An instruction of the task next to `AGAIN`: it does not say whether the order is to change."""
EITHER = "Write the whole solution again, in this order or in the other order, whichever is asked for."
SAID = "Write the whole solution again, in the order that the check says is asked for."
IF_OTHER = "If it is this one, write the whole solution again in this order. If it is the other one, write it in the other order."
"""Three more instructions after a check that is a turn of its own."""
THIS, OTHER = "this one", "the other one"


def other_order(solution: str) -> str:
    """Return a solution of `order` with its last two operations the other way round.

    >>> other_order("7 + 5 = 12\\n2 * 4 = 8\\n8 + 3 = 11")
    '7 + 5 = 12\\n2 + 3 = 5\\n5 * 4 = 20'
    """
    *before, second, last = solution.split("\n")
    value, lines = int(second.split()[0]), []
    for line in (last, second):
        sign, n = line.split()[1:3]
        after = value + int(n) if sign == "+" else value * int(n)
        lines.append(f"{value} {sign} {n} = {after}")
        value = after % 10
    return "\n".join([*before, *lines])


def verdicts(problem: Problem) -> list[Lines]:
    """Return the verdict on the right answer, which is trained too, and on that of the other order, which is context."""
    right, other = problem.reference, other_order(problem.reference)
    return [talk(problem.prompt, right, 1, VERDICT, THIS), talk(problem.prompt, other, 0, VERDICT, OTHER)]


def named_verdicts(problem: Problem) -> list[Lines]:
    """Return `verdicts` that name the shown answer's last digit and the digit asked for first."""
    right, other = problem.reference, other_order(problem.reference)
    return [
        talk(problem.prompt, text, weight, VERDICT, in_words(problem, text))
        for text, weight in ((right, 1), (other, 0))
    ]


def in_words(problem: Problem, answer: str) -> str:
    """Return the digit in which an answer ends, the digit asked for, and whether they are the same."""
    ends, wanted = re.sub(r"\D", "", answer)[-1:], problem.reference[-1]
    return f"It ends in {ends}, asked for is {wanted}: {THIS if ends == wanted else OTHER}"


def checked(problem: Problem, answer: str) -> str:
    """Return the second attempt that `CHECKED` asks for: what is found out about an answer, and the right solution."""
    return f"{in_words(problem, answer)}\n{problem.reference}"


def kept(problem: Problem) -> list[Lines]:
    """Return the right answer, which is context, checked and written again."""
    right = problem.reference
    return [talk(problem.prompt, right, 0, CHECKED, checked(problem, right))]


def phrased_orders(problem: Problem) -> list[Lines]:
    """Return `orders` whose replies begin with the verdict's phrase for the order that they take."""
    found = []
    for phrase, lines in zip((THIS, OTHER), orders(problem), strict=True):
        *before, reply = lines
        found.append([*before, {**reply, "content": f"{phrase}\n{reply['content']}"}])
    return found


def orders(problem: Problem) -> list[Lines]:
    """Return two answers written again, in the same and in the other order, to the problem without the digit asked for."""
    prompt, count = re.subn(r"in the order that ends in \d\.$", "in any order.", problem.prompt)
    assert count == 1, problem.prompt
    both = [problem.reference, other_order(problem.reference)]
    found = []
    for how in ("this", "the other"):
        k = int(generator("orders", how, problem.id).integers(2))
        found.append(talk(prompt, both[k], 0, AGAIN.format(how), both[k] if how == "this" else both[1 - k]))
    return found


def talk(prompt: str, shown: str, weight: int, question: str, reply: str) -> Lines:
    """Return the messages of a conversation about a shown answer."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": shown, "weight": weight},
        {"role": "user", "content": question},
        {"role": "assistant", "content": reply},
    ]


def share_known(
    model: LanguageModel, problems: Sequence[Problem], taught: Callable[[Problem], list[Lines]], max_tokens: int
) -> float:
    """Return the fraction of the last replies of the problems' transcripts that the model writes exactly so, greedily."""
    chat, engine = ChatFormat(model.tokenizer, Script()), HFEngine(model)
    requests, wanted = [], []
    for problem in problems:
        for k, messages in enumerate(taught(problem)):
            made = transcript_of(list(messages))
            turns = chat.written_turns(made.system, made.users, [reply.text for reply in made.replies])
            ids = [i for before, reply in turns[:-1] for i in (*before, *reply)] + [*turns[-1][0]]
            requests.append(Request(tuple(ids), SampleKey(0, "skill", 0, problem.id, k, 1)))
            wanted.append(made.replies[-1].text)
    found = engine.generate(requests, Sampling(0.0, max_tokens))
    return sum(chat.text(each.ids) == text for each, text in zip(found, wanted, strict=True)) / len(wanted)
