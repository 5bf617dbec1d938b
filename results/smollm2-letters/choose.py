"""Which task can SmolLM2-135M-Instruct learn on? Two attempts at development problems of several, greedy and sampled.

    python results/smollm2-letters/choose.py [--problems 60] [--temperatures 0 0.5 1] [--out FILE] [NAME ...]

Writes a row per task and temperature to the JSON file, which is read first: rows that are there already, of the same
number of problems, are not measured again. Prints the table.
"""

import argparse
import json
import time
from pathlib import Path

from selfcorrect import evaluate, get_task
from selfcorrect.config.schema import ModelConfig
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.zoo.resolve import find_model

HERE = Path(__file__).parent
NUMBER = "Answer with one number."
AGAIN = "Count again. Answer with one number."
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
TWO_DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
NO_SIGNS = {"allow_parentheses": False, "allow_negation": False}

TASKS = {
    "letters in 3 words": ("letter_counting", {"min_words": 3, "max_words": 3}, NUMBER, AGAIN),
    "letters in 6 words": ("letter_counting", {"min_words": 6, "max_words": 6}, NUMBER, AGAIN),
    "sum or difference, 2 digits": ("chain_sum", {**TWO_DIGITS, "allow_negation": False}, None, NUMBER),
    "sum or difference, 1 digit, signs": ("chain_sum", {**ONE_DIGIT, "allow_negation": True}, None, NUMBER),
    "sum, 2 digits": ("basic_arithmetic", {**TWO_DIGITS, **NO_SIGNS, "operators": ["+"]}, NUMBER, NUMBER),
    "product, 1 or 2 digits": ("products", {**ONE_DIGIT, "max_digits": 2}, None, NUMBER),
    "next number of a sequence": (
        *("number_sequence", {"max_complexity": 1, "min_terms": 5, "max_terms": 5}),
        *(NUMBER, NUMBER),
    ),
    "greatest common divisor": ("gcd", {"max_value": 50}, NUMBER, NUMBER),
}
"""Generator of reasoning-gym, its options, system message (None: the template's own), instruction before attempt 2."""
TEMPERATURES = (0.0, 0.5, 1.0)
MAX_TOKENS = 10


def measure(model, name, temperature, problems):
    generator, options, system, revise = TASKS[name]
    task = get_task(
        f"reasoning_gym:{generator}",
        {**options, "first": "{prompt}", "system": system, "revise": revise, "last_number": True},
    )
    start = time.perf_counter()
    found = evaluate(
        *(model, task),
        split="dev",
        limit=problems,
        max_tokens=MAX_TOKENS,
        temperature=temperature,
        stop=[" time", "."],
    )
    answers = [episode.attempts[0].text for episode in found.episodes]
    chat = ChatFormat(model.tokenizer, task.script)
    prompt = [len(chat.prompt(episode.prompt)) for episode in found.episodes]
    keys = ("n", "acc_t1", "acc_t1_ci95", "acc_t2", "acc_t2_ci95", "delta", "delta_ci95", "i_to_c", "c_to_i")
    return {
        "task": name,
        "temperature": temperature,
        **{key: found.results.to_json()[key] for key in keys},
        "truncated": [turn.truncated for turn in found.results.turns],
        "different_first_answers": len(set(answers)) / len(answers),
        "prompt_tokens": sum(prompt) / len(prompt),
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(rows):
    lines = [
        "| task | T | n | Acc@t1 | Acc@t2 | answers cut at the limit, t1 / t2 | tokens of the prompt |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        cut = " / ".join(f"{100 * share:.0f}" for share in row["truncated"])
        first, second = (
            f"{100 * row[key]:.0f} [{100 * row[key + '_ci95'][0]:.0f}, {100 * row[key + '_ci95'][1]:.0f}]"
            for key in ("acc_t1", "acc_t2")
        )
        lines.append(
            f"| {row['task']} | {row['temperature']:g} | {row['n']} | {first} | {second} | {cut} | {row['prompt_tokens']:.0f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TASKS))
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES, metavar="T")
    parser.add_argument("--out", type=Path, default=HERE / "tasks.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(TASKS):
        parser.error(f"{sorted(unknown)}: there are {', '.join(TASKS)}")
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    known = {(row["task"], row["temperature"]): row for row in rows}
    model = None
    for name in arguments.names or TASKS:
        for temperature in arguments.temperatures:
            if known.get((name, temperature), {}).get("n") == arguments.problems:
                continue
            model = model or find_model(ModelConfig(source="smollm2-135m"), seed=0)
            known[name, temperature] = measure(model, name, temperature, arguments.problems)
            arguments.out.write_text(json.dumps(list(known.values()), indent=1) + "\n")
            print(table([known[name, temperature]]).splitlines()[-1], flush=True)
    print(table(known.values()))


if __name__ == "__main__":
    main()
