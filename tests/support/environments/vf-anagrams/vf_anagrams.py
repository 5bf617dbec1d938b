"""An environment of the classic kind with a graded rubric, an XML parser, few-shot messages and asynchronous rewards."""

import asyncio

import verifiers as vf
from datasets import Dataset

WORDS = ["listen", "stone", "night", "angel", "cider", "bored", "thing", "heart", "state", "resin", "lemon", "paris"]
SYSTEM = "Answer as <think>...</think><answer>the letters</answer>."


async def overlap(completion, answer, parser, info):
    """The fraction of the places that are right."""
    await asyncio.sleep(0)
    found = parser.parse_answer(completion) or ""
    print("\x1b[2Jscored", found)
    return sum(a == b for a, b in zip(found, answer, strict=False)) / info["letters"]


async def brief(completion, state):
    assert state["trajectory"] and state["answer"]
    return float(len(completion[-1]["content"]) < 200)


def broken(completion):
    raise RuntimeError("no such thing")


def load_environment(breaks: bool = False, judge: bool = False, group: bool = False, turns: int = 1, words: int = 12):
    rows = [
        {"question": f"Sort the letters of {word}.", "answer": "".join(sorted(word)), "info": {"letters": len(word)}}
        for word in WORDS[:words]
    ]
    parser = vf.XMLParser(["think", "answer"], answer_field="answer")
    if judge:
        rubric = vf.RubricGroup([vf.Rubric(funcs=[overlap], parser=parser), vf.JudgeRubric(parser=parser)])
    else:
        rubric = vf.Rubric(funcs=[overlap, brief], weights=[0.9, 0.1], parser=parser)
    if breaks:
        rubric.add_reward_func(broken, 0.0)
    if group:
        rubric.add_reward_func(lambda completions: [0.0] * len(completions))
    few_shot = [
        {"role": "user", "content": "Sort the letters of act."},
        {"role": "assistant", "content": "<answer>act</answer>"},
    ]
    own = {
        "dataset": Dataset.from_list(rows),
        "system_prompt": SYSTEM,
        "few_shot": few_shot,
        "parser": parser,
        "rubric": rubric,
    }
    return vf.SingleTurnEnv(**own) if turns == 1 else Talk(max_turns=turns, **own)


class Talk(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **kwargs):
        return [{"role": "user", "content": "Go on."}]
