"""An environment of the classic kind with an exact rubric: six-digit sums, as the bundled model knows them."""

import random

import verifiers as vf
from datasets import Dataset


def exact(completion, answer, parser):
    return 1.0 if (parser.parse_answer(completion) or "").strip() == answer else 0.0


def load_environment(problems: int = 400, held_out: int = 100, digits: int = 6):
    rng = random.Random(0)
    pairs = [(rng.randrange(10**digits), rng.randrange(10**digits)) for _ in range(problems + held_out)]
    rows = [
        {"question": f"{a:0{digits}d}+{b:0{digits}d}", "answer": f"{a + b:0{digits + 1}d}"}
        for a, b in dict.fromkeys(pairs)
    ]
    train = Dataset.from_list(rows[:problems])
    test = Dataset.from_list(rows[problems:]) if held_out else None
    return vf.SingleTurnEnv(dataset=train, eval_dataset=test, rubric=vf.Rubric(funcs=[exact]))
