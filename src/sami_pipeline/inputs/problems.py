"""Grade-school math problems: generated, or GSM8K's own; and solutions written by stance.

Generated problems come from reasoning-gym: ``gsm_symbolic`` (templates of GSM8K with other names
and numbers, arXiv 2410.05229, with worked solutions) and ``chain_sum`` (sums and differences of
small numbers, whose partial sums are written out here).
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.math_answers import reference_answer, same_number
from sami_pipeline.evaluation.math_readings import read_answer
from sami_pipeline.inputs import outside_files
from sami_pipeline.inputs.records import MathProblem, read_records
from sami_pipeline.inputs.text_files import json_lines
from sami_pipeline.parameters import ProblemsParameters
from sami_pipeline.training.responses import USABLE

logger = logging.getLogger(__name__)

PRINCIPLE = "principle"
_SPLITS = ("train", "test")
# Generated problems are drawn until there are enough; a family that repeats itself gives up.
_DRAWS = 50


def load_problems(parameters: ProblemsParameters, project_folder: Path) -> pd.DataFrame:
    """Return the problems of both splits; no question is in both.

    Returns:
        ``split, problem_id, question, answer, solution, template``; ``solution`` ends in
        ``#### N`` and ``template`` names what the problem was generated from ("" if nothing).

    Raises:
        InputError: the source cannot be read, or has too few different problems.
    """
    if parameters.source == "reasoning_gym":
        problems = generate_problems(parameters)
    else:
        problems = read_gsm8k(parameters, project_folder)
    if parameters.training_source is None:
        return problems
    test = problems[problems["split"] == "test"]
    return _kept_apart(read_training_problems(parameters, project_folder), test)


def _kept_apart(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return both splits, without training problems that are repeated or tested on."""
    both = train["question"].isin(test["question"]) | train["question"].duplicated()
    if both.any():
        logger.info("%d training problems are left out: repeated, or in the test split", both.sum())
    return pd.concat([train[~both], test], ignore_index=True)


def read_training_problems(parameters: ProblemsParameters, project_folder: Path) -> pd.DataFrame:
    """Return problems to train on from a table with ``problem`` and ``solution``, such as MATH's.

    Their ``answer`` is the number that the solution gives, "" where it gives none.
    """
    location = str(parameters.training_source).removeprefix("math:")
    path = location if "://" in location else str(project_folder / location)
    table = _table(path, ("problem", "solution"), "math.problems.training_source")
    table = _sampled(table, parameters.train, path, "train", parameters.seed)
    return pd.DataFrame(
        {
            "split": "train",
            "problem_id": [f"math-train-{index}" for index in table.index],
            "question": table["problem"],
            "answer": [read_answer(solution).answer for solution in table["solution"]],
            "solution": table["solution"],
            "template": "",
        }
    )


def read_gsm8k(parameters: ProblemsParameters, project_folder: Path) -> pd.DataFrame:
    """Return GSM8K (arXiv 2110.14168) from parquet or its original ``.jsonl``."""
    location = parameters.source.removeprefix("gsm8k:")
    parts = []
    # Where other problems are trained on, only the split that is tested on is read.
    read = {"train": "train"} if parameters.training_source is None else {}
    for split, published in (read | {"test": parameters.test_split}).items():
        place = location.replace("{split}", published)
        path = place if "://" in place else str(project_folder / place)
        table = _table(path, ("question", "answer"), "math.problems.source")
        read_records(MathProblem, table[["question", "answer"]], path)
        answers = [_answer(text, f"{path}: line {n}") for n, text in enumerate(table["answer"], 1)]
        _tell_of_repeated(table["question"], path)
        table = table.assign(number=answers)
        wanted = parameters.train if split == "train" else parameters.test
        table = _sampled(table, wanted, path, split, parameters.seed)
        parts.append(
            pd.DataFrame(
                {
                    "split": split,
                    "problem_id": [f"gsm8k-{published}-{index}" for index in table.index],
                    "question": table["question"],
                    "answer": table["number"],
                    "solution": table["answer"],
                    "template": "",
                }
            )
        )
    test = parts[-1]
    if len(parts) == 1:
        return test
    return _kept_apart(parts[0], test)


def _table(path: str, columns: Sequence[str], parameter: str) -> pd.DataFrame:
    """Return a table of parquet or JSON lines that has these columns."""
    content = outside_files.content_of(path, f"{parameter}: {path}")
    if path.endswith(".parquet"):
        table = outside_files.parquet_table(content, path)
    else:
        table = pd.DataFrame([row for _, row in json_lines(content, path)])
    if table.empty:
        raise InputError(f"{path}: is empty; take the file again from where it came")
    if missing := set(columns) - set(table.columns):
        raise InputError(f"{path}: the column {', '.join(sorted(missing))} is missing")
    for column in columns:
        odd = [n for n, value in enumerate(table[column], 1) if not isinstance(value, str)]
        if odd:
            raise InputError(f"{path}: line {odd[0]}: {column}: is no text")
    return table


def _tell_of_repeated(questions: pd.Series, path: str) -> None:
    """Warn of questions that stand twice: a published file is taken as it is."""
    again = questions[questions.duplicated()]
    if len(again):
        first = questions.tolist().index(again.iloc[0]) + 1
        logger.warning(
            "%s: lines that repeat an earlier question: %d of %d, such as line %d, which asks what "
            "line %d asks",
            path, len(again), len(questions), again.index[0] + 1, first,
        )  # fmt: skip


def _sampled(
    table: pd.DataFrame, wanted: int | None, path: str, split: str, seed: int
) -> pd.DataFrame:
    """Return a seeded sample of so many problems, in their order; None takes all."""
    if wanted is not None and len(table) < wanted:
        raise InputError(
            f"{path}: has {len(table)} problems, but math.problems.{split} is {wanted}"
        )
    if wanted is not None and wanted < len(table):
        table = table.sample(wanted, random_state=seed).sort_index()
    return table


def _answer(solution: str, place: str) -> str:
    try:
        return reference_answer(solution)
    except InputError as error:
        raise InputError(f"{place}: answer: {error}") from error


def generate_problems(parameters: ProblemsParameters) -> pd.DataFrame:
    """Return generated problems, each family its share, with different questions throughout."""
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    for split in _SPLITS:
        wanted = parameters.train if split == "train" else parameters.test or 0
        for family, share in _shares(wanted, parameters.families).items():
            source = _family(family, f"{split}/{parameters.seed}", share * _DRAWS)
            taken = 0
            for problem in source:
                if taken == share:
                    break
                if problem["question"] in seen or not _in_split(problem, split, parameters):
                    continue
                seen.add(problem["question"])
                taken += 1
                rows.append({"split": split, "problem_id": f"{family}-{split}-{taken}", **problem})
            if taken < share:
                raise InputError(
                    f"math.problems: {family} gave only {taken} different problems for {split}; "
                    f"ask for fewer than {share}"
                )
    columns = ["split", "problem_id", "question", "answer", "solution", "template"]
    return pd.DataFrame(rows, columns=columns)


def _shares(total: int, families: dict[str, int]) -> dict[str, int]:
    """Split a number by parts, the first families taking what is left over."""
    parts = sum(families.values())
    shares = {family: total * part // parts for family, part in families.items()}
    for family in list(shares)[: total - sum(shares.values())]:
        shares[family] += 1
    return shares


def _in_split(problem: dict[str, str], split: str, parameters: ProblemsParameters) -> bool:
    """Keep templates apart, where they are to be, by the parity of their number."""
    number = re.search(r"\d+$", problem["template"])
    if parameters.shared_templates or number is None:
        return True
    return int(number.group()) % 2 == _SPLITS.index(split)


def _family(family: str, seed: str, size: int) -> Iterator[dict[str, str]]:
    import reasoning_gym

    options: dict[str, Any] = {}
    if family == "chain_sum":
        options = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}
    # Train and test draw from seeds far apart; equal questions are dropped besides.
    number = zlib.crc32(f"{family}/{seed}".encode())
    dataset = reasoning_gym.create_dataset(family, size=size, seed=number, **options)
    for index in range(size):
        entry = dataset[index]
        if family == "chain_sum":
            expression = entry["metadata"]["expression"]
            yield {
                "question": f"What is {expression}?",
                "answer": entry["answer"],
                "solution": f"{partial_sums(expression)}\n#### {entry['answer']}",
                "template": "",
            }
        else:
            question = entry["question"].removesuffix(
                " Give the result as your final answer. Do not include units."
            )
            solution = entry["metadata"]["answer_cot"]
            if not re.search(r"####\s*\S+\s*$", solution):
                solution = f"{solution.rstrip()}\n#### {entry['answer']}"
            yield {
                "question": question,
                "answer": entry["answer"],
                "solution": solution,
                "template": f"gsm_symbolic-{dataset.task_indices[index]}",
            }


def partial_sums(expression: str) -> str:
    """Return the steps of a sum from left to right: "4 + 3 - 2" gives "4 + 3 = 7", "7 - 2 = 5"."""
    first, *rest = expression.split()
    total = int(first)
    lines = []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(number) if sign == "+" else total - int(number)
        lines.append(f"{total} {sign} {number} = {result}")
        total = result
    return "\n".join(lines)


def queries_of(problems: pd.DataFrame) -> pd.DataFrame:
    """Return the training problems as training queries: ``query_id, category, query, source``."""
    train = problems[problems["split"] == "train"]
    return pd.DataFrame(
        {
            "query_id": train["problem_id"],
            "category": "math",
            "query": train["question"],
            "source": train["problem_id"].str.rsplit("-", n=2).str[0],
        }
    ).reset_index(drop=True)


def rightly_solved(responses: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """Return the responses without the training queries whose desired one has a wrong answer.

    Held-out queries stay.

    Raises:
        InputError: none is left to train on.
    """
    answers = problems.set_index("problem_id")["answer"]
    train = responses["split"] == "train"
    usable = responses["status"] == USABLE
    desired = responses[train & usable & (responses["constitution"] == "desired")]
    wrong = {
        row.query_id
        for row in desired.itertuples(index=False)
        if not same_number(read_answer(row.response).answer, answers[row.query_id])
    }
    logger.info("%d of %d solutions have a wrong answer and are left out", len(wrong), len(desired))
    if len(wrong) == len(desired):
        raise InputError("math.training.sft.only_correct: no training solution has a right answer")
    return responses[~(train & responses["query_id"].isin(wrong))]


def solution_by_stances(solution: str, answer: str, stances: Sequence[tuple[str, str]]) -> str:
    """Return a worked solution as a constitution wants it.

    Two principles are known: ``shows_steps`` (the steps, or none) and ``final_line`` (the line
    ``#### N``, or a sentence).

    Raises:
        InputError: a stance on another principle, which a worked solution can't take.
    """
    chosen = dict(stances)
    unknown = set(chosen) - {"shows_steps", "final_line"}
    if unknown:
        raise InputError(
            f"math.models.teacher: worked_solutions can't take a stance on "
            f"{', '.join(sorted(unknown))}; choose a model as the teacher"
        )
    steps = re.sub(r"\s*####.*$", "", solution, flags=re.DOTALL).strip()
    steps = re.sub(r"<<[^<>]*>>", "", steps)  # GSM8K's marks for a calculator
    parts = [steps] if chosen.get("shows_steps", PRINCIPLE) == PRINCIPLE else []
    last = chosen.get("final_line", PRINCIPLE) == PRINCIPLE
    parts.append(f"#### {answer}" if last else f"The answer is {answer}.")
    return "\n".join(parts)
