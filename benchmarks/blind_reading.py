"""Pairs of answers for a reader who is not told which model wrote which, and the count of verdicts.

    python benchmarks/blind_reading.py --write pairs.txt     # SFT and SAMI of `make mt-bench`
    python benchmarks/blind_reading.py --score benchmarks/blind_reading.json
    python benchmarks/blind_reading.py --every 1 --score benchmarks/blind_reading_of_all.json

Every fourth question of MT-Bench, or with ``--every 1`` all of them, first under the desired and
then under the opposite constitution; which answer is A is drawn, and so is the order of the pairs.
A reader gives, for each pair, who follows the rule better, who wrote the better text, and whose
answer repeats itself badly, as ``{"d1": ["A", "tie", "both"], …}``.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import pandas as pd
import results
from scipy.stats import binomtest

DATA = Path(__file__).resolve().parents[1] / "data"
SEED = 3
QUESTIONS = ("follows the rule better", "is the better text", "repeats itself badly")


def pairs(
    answers: pd.DataFrame, models: tuple[str, str], every: int = results.EVERY
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the text of each pair, in the order of reading, and who is A and B in it."""
    generator = random.Random(SEED)
    texts, names = {}, {}
    for constitution in ("desired", "contrasting"):
        for number, (_, own) in enumerate(results.chosen(answers, constitution, every), start=1):
            order = list(models)
            generator.shuffle(order)
            name = f"{constitution[0]}{number}"
            names[name] = order
            asked = results.request(own.loc[models[0]])
            first, second = (own.loc[model, "answer"] for model in order)
            texts[name] = f"=== {name}\nREQUEST:\n{asked}\n--- A:\n{first}\n--- B:\n{second}\n"
    reading = list(texts)
    generator.shuffle(reading)
    return {name: texts[name] for name in reading}, names


def score(verdicts: dict[str, list[str]], names: dict[str, list[str]]) -> pd.DataFrame:
    """Return how often each model, or neither or both, was named, by constitution and question."""
    counts = {}
    for letter, constitution in (("d", "desired"), ("c", "contrasting")):
        for place, question in enumerate(QUESTIONS):
            named = [
                named_by(given[place], names[name])
                for name, given in verdicts.items()
                if name.startswith(letter)
            ]
            counts[constitution, question] = Counter(named)
    return pd.DataFrame(counts).T.fillna(0).astype(int)


def sign_tests(counts: pd.DataFrame, models: tuple[str, str]) -> str:
    """Return exact two-sided sign tests of whether one model is named more often than the other."""
    lines = []
    for row in counts.index:
        first, second = (int(counts.loc[row].get(model, 0)) for model in models)
        p = binomtest(first, first + second).pvalue if first + second else 1.0
        lines.append(f"{' '.join(row)}: {models[1]} {second} : {first} {models[0]}, p = {p:.2g}")
    return "\n".join(lines)


def named_by(verdict: str, order: list[str]) -> str:
    """Return the model that a verdict names, or the verdict where it names none."""
    return order["AB".index(verdict)] if verdict in "AB" else verdict


def agreement(
    verdicts: dict[str, list[str]],
    names: dict[str, list[str]],
    answers: pd.DataFrame,
    checked: pd.DataFrame,
    every: int = results.EVERY,
) -> str:
    """Return how often the checks tell the answers of a pair apart, and the reader says the same.

    Args:
        verdicts: of the reader, by pair.
        names: who is A and B, by pair.
        answers: of the run, for the questions behind the pairs.
        checked: of the run: whether each answer follows what it is asked for.
        every: see ``results.chosen``.
    """
    key = ["constitution", "question_id", "model"]
    followed = checked[checked["turn"] == 1].groupby(key)["passed"].all()
    lines = []
    for constitution in ("desired", "contrasting"):
        apart = agreed = opposed = 0
        passes = Counter()
        for number, (question, _) in enumerate(
            results.chosen(answers, constitution, every), start=1
        ):
            name = f"{constitution[0]}{number}"
            passed = [model for model in names[name] if followed[constitution, question, model]]
            passes.update(passed)
            if len(passed) == 1:
                said = named_by(verdicts[name][0], names[name])
                apart += 1
                agreed += said == passed[0]
                opposed += said in names[name] and said != passed[0]
        counts = ", ".join(f"{model} {passes[model]}" for model in sorted(passes))
        lines.append(
            f"{constitution}: by the checks the rule is followed by {counts}; in {apart} pairs "
            f"by one answer only, where the reader agrees in {agreed}, says the other in {opposed}"
        )
    return "\n".join(lines)


def main() -> None:
    """Write pairs, or count verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="default")
    parser.add_argument("--models", nargs=2, default=("sft", "sft_sami"))
    parser.add_argument("--write", type=Path, help="where the pairs go")
    parser.add_argument("--score", type=Path, help="a reader's verdicts")
    parser.add_argument("--every", type=int, default=results.EVERY, help="1 takes all questions")
    arguments = parser.parse_args()
    folder = DATA / "07_model_output" / arguments.run / "mt_bench"
    answers = pd.read_parquet(folder / "answers.parquet")
    texts, names = pairs(answers, tuple(arguments.models), arguments.every)
    if arguments.write:
        arguments.write.write_text("\n".join(texts.values()), "utf-8")
    if arguments.score:
        verdicts = json.loads(arguments.score.read_text("utf-8"))
        counts = score(verdicts, names)
        print(counts.to_string())
        print(sign_tests(counts, tuple(arguments.models)))
        checked = pd.read_parquet(folder / "checked.parquet")
        print(agreement(verdicts, names, answers, checked, arguments.every))


if __name__ == "__main__":
    main()
