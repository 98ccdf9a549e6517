"""How often models solve problems: greedily, in k attempts, and by a vote of k attempts.

All tables here are made of *attempts*, one row each:

* `model` (str): name of the model.
* `problem_id` (str): name of the problem.
* `attempt` (int): 0 is the greedy attempt, 1..n are independent samples.
* `text` (str): the solution as generated; not read here.
* `answer` (str): what `math_readings.read_answer` takes, "" for none; `strict` and `flexible`: what
  `math_answers` finds.
* `correct` (bool): whether the chosen one of the three is the problem's answer (`same_number`).
* `completion_tokens` (int): length of the solution.

A model's problems all have the same attempts, so that no problem counts more than another. Every
interval is a 95 % interval over *problems* (`intervals.mean_interval`): values are computed for
each problem once.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import pandas as pd

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.intervals import (
    DIFFERENCE,
    LENGTH,
    SHARE,
    Interval,
    holm,
    mean_interval,
    paired_p,
)
from sami_pipeline.evaluation.math_answers import parse_number, same_number
from sami_pipeline.evaluation.seeds import (
    NO_SEED,
    OPPONENT_SEED,
    SEED,
    Lineage,
    seed_pairs,
    seeds_in,
    with_seeds,
)
from sami_pipeline.evaluation.statistics import require_rows

GREEDY = 0
"""The `attempt` that was decoded greedily."""

METRICS = ("greedy", "pass_at_k", "maj_at_k", "invalid_rate", "mean_tokens")
"""What the tables hold in `metric`, in their order."""

Extraction = Literal["answer", "strict", "flexible", "published"]

JUDGED_READINGS = (
    "answer", "strict", "flexible", "published", "harness_strict", "harness_flexible",
)  # fmt: skip
"""The readings that `accuracy_breakdown` compares; the last two are lm-evaluation-harness's,
`published` is that of arXiv 2410.01704's code."""

ALL_FAMILIES = "all"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate how likely at least one of k samples solves a problem.

    The estimator is 1 - C(n - c, k) / C(n, k) of Chen et al. 2021, "Evaluating Large Language
    Models Trained on Code", arXiv 2107.03374, section 2.1. It has no bias, unlike 1 - (1 - c/n)^k.
    Integers make it exact for large n, up to the rounding of the result.

    Args:
        n: Number of samples of the problem.
        c: Number of them that are correct.
        k: Number of samples that one may submit.

    Returns:
        The probability, in [0, 1].

    Raises:
        ValueError: Unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"need 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    # C(n - c, k) / C(n, k) is symmetric in c and k; the smaller one keeps the integers small.
    drawn, other = sorted((c, k))
    total = math.comb(n, drawn)
    return (total - math.comb(n - other, drawn)) / total


def majority_at_k(answers: Sequence[str], correct_answer: str, k: int) -> float:
    """Compute how likely the majority vote of k of a problem's samples is correct.

    This is self-consistency (Wang et al. 2022, arXiv 2203.11171), averaged over *all* subsets of k
    samples. The average is exact for every n and k: subsets are counted, not drawn. It is never
    "any of k", which is `pass_at_k`.

    Args:
        answers: (n,) the answers that were found, "" for none. Those that `same_number` holds for
            vote together; those that are no number do not vote.
        correct_answer: The problem's answer.
        k: Number of samples that vote, from 1 to n.

    Returns:
        The expected accuracy, in [0, 1]. Among answers with equally many votes one is chosen at
        random, and that counts with its expectation. A subset without any number is wrong.

    Raises:
        ValueError: If k is not in 1..n, or the correct answer is no number.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"need 1 <= k <= number of answers, got k={k} of {len(answers)}")
    target = parse_number(correct_answer)
    if target is None:
        raise ValueError(f"the correct answer {correct_answer!r} is no number")
    votes = Counter(map(parse_number, answers))
    invalid, correct = votes.pop(None, 0), votes.pop(target, 0)
    return _majority_accuracies(correct, tuple(sorted(votes.values())), invalid)[k - 1]


@lru_cache(maxsize=2**16)
def _majority_accuracies(correct: int, wrong: tuple[int, ...], invalid: int) -> tuple[float, ...]:
    """Compute the majority's expected accuracy for k = 1..n from how often each answer was given.

    Args:
        correct: How many samples gave the correct answer.
        wrong: (wrong answers,) how many samples gave each.
        invalid: How many samples gave none.
    """
    n = correct + sum(wrong) + invalid
    denominator = math.lcm(*range(1, len(wrong) + 2))
    won = [0] * (n + 1)
    for votes in range(1, correct + 1):
        # A wrong answer that was given less often cannot catch up, whichever of its samples are
        # drawn. So these and the invalid ones are free.
        rivals = [size for size in wrong if size >= votes]
        free = n - correct - sum(rivals)
        # ways[t, s]: in how many ways s samples that are not correct can be drawn such that t wrong
        # answers have `votes` votes and none has more. Python's integers do not overflow.
        ways = np.zeros((len(rivals) + 1, n - correct + 1), dtype=object)
        ways[0, : free + 1] = [math.comb(free, drawn) for drawn in range(free + 1)]
        for size in rivals:
            extended = ways.copy()
            for drawn in range(1, votes):
                extended[:, drawn:] += math.comb(size, drawn) * ways[:, :-drawn]
            extended[1:, votes:] += math.comb(size, votes) * ways[:-1, :-votes]
            ways = extended
        shares = [denominator // (tied + 1) for tied in range(len(rivals) + 1)]
        for drawn, count in enumerate(np.array(shares, dtype=object) @ ways):
            won[votes + drawn] += math.comb(correct, votes) * count
    return tuple(won[k] / (denominator * math.comb(n, k)) for k in range(1, n + 1))


def accuracy(
    attempts: pd.DataFrame,
    *,
    extraction: Extraction = "strict",
    ks: Collection[int] | None = None,
) -> pd.DataFrame:
    """Summarise how well each model solves the problems.

    Args:
        attempts: One row per (model, problem_id, attempt), as the module describes.
        extraction: The column with the answers that vote, the one that `correct` was judged by.
        ks: Numbers of samples to report; None takes all from 1 to that of the samples.

    Returns:
        Columns `model`, `metric`, `k`, `n`, `value`, `ci_low`, `ci_high`; n counts problems, and
        with fewer than two the interval is NaN. Metrics of each model, in this order:

        - `greedy` (k = 1): share of problems that the greedy attempt solves, if there is one;
        - `pass_at_k` for k = 1..samples: mean of `pass_at_k`;
        - `maj_at_k` for k = 1..samples: mean of `majority_at_k`;
        - `invalid_rate` (k = 1): share of samples without a number as their answer;
        - `mean_tokens` (k = 1): mean length of the samples in tokens.

        The last two are of the greedy attempts where there are no samples.

    Raises:
        ValueError: If the table is incomplete (`statistics.require_rows`).
        InputError: If problems of a model differ in their attempts, samples are not numbered from
            1 on, or `correct` contradicts the answers.
    """
    _require_attempts(attempts, extraction)
    records = []
    for model, rows in attempts.groupby("model", sort=False):
        values = {
            seeds: _reported(_problem_values(own, extraction), ks)
            for seeds, own in _replicates(rows)
        }
        for metric, k, _, cell in _pooled(values, SHARE):
            records.append((model, metric, k, cell.n, cell.seeds, *cell.bounds))
    columns = ["model", "metric", "k", "n", "seeds", "value", "ci_low", "ci_high"]
    return with_seeds(attempts, pd.DataFrame(records, columns=columns))


def accuracy_by_seed(
    attempts: pd.DataFrame,
    *,
    extraction: Extraction = "strict",
    ks: Collection[int] | None = None,
) -> pd.DataFrame:
    """Summarise each training of a model by itself, and how much they differ between seeds.

    Args:
        attempts: As `accuracy` takes them, with `seed`.
        extraction: As in `accuracy`.
        ks: As in `accuracy`.

    Returns:
        Columns `model`, `seed`, `metric`, `k`, `n`, `value`, `ci_low`, `ci_high`, `mean`, `spread`
        of every model that was trained: intervals are over problems alone, `mean` is that of the
        seeds, `spread` the standard deviation between them.

    Raises:
        ValueError: As `accuracy`.
        InputError: As `accuracy`.
    """
    trained = attempts[attempts[SEED] != NO_SEED]
    parts = [
        accuracy(rows.drop(columns=SEED), extraction=extraction, ks=ks).assign(seed=seed)
        for seed, rows in trained.groupby(SEED)
    ]
    table = pd.concat(parts, ignore_index=True)
    values = table.groupby(["model", "metric", "k"], sort=False)["value"]
    table = table.assign(mean=values.transform("mean"), spread=values.transform("std"))
    columns = ["model", "seed", "metric", "k", "n", "value", "ci_low", "ci_high", "mean", "spread"]
    return table[columns]


def accuracy_breakdown(attempts: pd.DataFrame) -> pd.DataFrame:
    """Summarise what each model solves by reading, family of problems and number of attempts.

    Args:
        attempts: One row per (model, problem_id, attempt), as the module describes, with every
            column of `JUDGED_READINGS` and `reference`, the problem's answer. The family is what
            the problem's name begins with (``chain_sum-test-3``).

    Returns:
        Columns `model`, `reading`, `family`, `metric`, `k`, `n`, `value`, `ci_low`, `ci_high`: the
        metrics `greedy`, `pass_at_k` and `maj_at_k` of `accuracy` for one attempt and all of them.
        Family "all" comes first; alone where there is one family. For the harness's readings an
        answer is correct where it is the reference's string, and there is no vote.

    Raises:
        ValueError: As `accuracy`.
        InputError: As `accuracy`.
    """
    families = attempts["problem_id"].str.rsplit("-", n=2).str[0]
    names = [ALL_FAMILIES, *(families.unique() if families.nunique() > 1 else ())]
    records = []
    for reading in JUDGED_READINGS:
        judged = _judged(attempts, reading)
        for family in names:
            own = judged if family == ALL_FAMILIES else judged[families == family]
            for model, rows in own.groupby("model", sort=False):
                kept = {}
                for seeds, attempted in _replicates(rows):
                    values = _problem_values(attempted, reading)
                    most = max(k for _, k in values)
                    kept[seeds] = {
                        (metric, k): column
                        for (metric, k), column in values.items()
                        if k in (1, most) and metric in ("greedy", "pass_at_k", "maj_at_k")
                        if not (metric == "maj_at_k" and reading.startswith("harness"))
                    }
                for metric, k, _, cell in _pooled(kept, SHARE):
                    counts = (cell.n, cell.seeds)
                    records.append((model, reading, family, metric, k, *counts, *cell.bounds))
    columns = ["model", "reading", "family", "metric", "k", "n", "seeds"]
    table = pd.DataFrame(records, columns=[*columns, "value", "ci_low", "ci_high"])
    return with_seeds(attempts, table)


def _judged(attempts: pd.DataFrame, reading: str) -> pd.DataFrame:
    """Return attempts with `correct` as the reading has it."""
    pairs = zip(attempts[reading], attempts["reference"], strict=True)
    if not reading.startswith("harness"):
        return attempts.assign(correct=[same_number(*pair) for pair in pairs])
    # The harness compares strings: what is not the same string is given no answer to vote with.
    right = [answer == reference for answer, reference in pairs]
    return attempts.assign(correct=right, **{reading: attempts[reading].where(right, "")})


def accuracy_difference(
    attempts: pd.DataFrame,
    baseline: str,
    *,
    extraction: Extraction = "strict",
    ks: Collection[int] | None = None,
    lineage: Lineage | None = None,
) -> pd.DataFrame:
    """Compare each model with a baseline on the same problems.

    Args:
        attempts: One row per (model, problem_id, attempt), as the module describes.
        baseline: Name of the model to compare with.
        extraction: The column with the answers that vote, the one that `correct` was judged by.
        ks: As in `accuracy`.
        lineage: See `seeds`.

    Returns:
        Columns `model`, `baseline`, `metric`, `k`, `n`, `difference`, `ci_low`, `ci_high`,
        `detectable`, `p_value`, `p_holm`: for each other model and each metric of `accuracy` that
        both have, the mean over problems of the model's value minus the baseline's, in the metric's
        unit, and the p-value of the exact paired test, corrected for the number of models. If one
        of the two has no samples, only their greedy attempts are compared. No rows if the baseline
        is alone.

    Raises:
        ValueError: As `accuracy`.
        InputError: As `accuracy`; or if the baseline has no attempts, the models answered different
            problems, or one has greedy attempts only and the other none.
    """
    _require_attempts(attempts, extraction)
    models = dict(list(attempts.groupby("model", sort=False)))
    if baseline not in models:
        raise InputError(
            f"attempts: none of the baseline {baseline!r}; models there are: "
            + ", ".join(map(repr, models))
        )
    records = []
    for model, rows in models.items():
        if model == baseline:
            continue
        pair = [(model, rows), (baseline, models[baseline])]
        _require_same_problems(*pair)
        if not all((side["attempt"] != GREEDY).any() for _, side in pair):
            pair = [(name, side[side["attempt"] == GREEDY]) for name, side in pair]
            if lacking := [name for name, side in pair if side.empty]:
                raise InputError(
                    f"attempts: {model!r} and {baseline!r} share no kind of attempt; "
                    f"add greedy attempts (attempt 0) of {lacking[0]!r}"
                )
        ours, theirs = (
            {
                seed[:1]: _reported(_problem_values(own, extraction), ks)
                for seed, own in _replicates(side)
            }
            for _, side in pair
        )
        compared = [((), ())]
        if SEED in attempts:
            compared = [
                ((seed,), (other,))
                for seed, other in seed_pairs(attempts, model, baseline, lineage or {})
            ]
        gains = {
            (*seed, *other): {
                cell: ours[seed][cell] - theirs[other][cell]
                for cell in ours[seed]
                if cell in theirs[other]
            }
            for seed, other in compared
        }
        for metric, k, p_value, cell in _pooled(gains, DIFFERENCE):
            measures = (cell.n, cell.seeds, *cell.bounds, cell.detectable, p_value)
            records.append((model, baseline, metric, k, *measures))
    columns = ["model", "baseline", "metric", "k", "n", "seeds", "difference", "ci_low", "ci_high"]
    table = pd.DataFrame(records, columns=[*columns, "detectable", "p_value"])
    table = with_seeds(attempts, table)
    corrected = pd.Series(np.nan, index=table.index)
    for _, family in table.groupby(["metric", "k"]):
        corrected[family.index] = holm(family["p_value"].tolist())
    return table.assign(p_holm=corrected)


def _reported(
    values: dict[tuple[str, int], np.ndarray], ks: Collection[int] | None
) -> dict[tuple[str, int], np.ndarray]:
    """Return the metrics of samples for these numbers of them alone, and all other metrics."""
    sampled = ("pass_at_k", "maj_at_k")
    return {
        (metric, k): column
        for (metric, k), column in values.items()
        if ks is None or metric not in sampled or k in ks
    }


def _require_attempts(attempts: pd.DataFrame, extraction: str) -> None:
    if extraction not in (known := get_args(Extraction)):
        raise ValueError(f"extraction must be one of {', '.join(known)}, is {extraction!r}")
    key = ["model", "problem_id", "attempt"]
    require_rows(attempts, key, [extraction, "completion_tokens"], ["correct"])
    if not pd.api.types.is_integer_dtype(attempts["attempt"]):
        raise ValueError(f"column 'attempt' must be integer, is {attempts['attempt'].dtype}")


def _require_same_problems(one: tuple[str, pd.DataFrame], other: tuple[str, pd.DataFrame]) -> None:
    for (model, rows), (absent, others) in ((one, other), (other, one)):
        if alone := set(rows["problem_id"]).difference(others["problem_id"]):
            raise InputError(
                f"attempts: {len(alone)} problems of {model!r} have no attempt of {absent!r}, the "
                f"first is {min(alone)!r}; compare models on the same problems"
            )


def _problem_values(rows: pd.DataFrame, extraction: str) -> dict[tuple[str, int], np.ndarray]:
    """Compute the metrics of one model, for each problem.

    Returns:
        (problems,) values for each (metric, k), problems sorted by `problem_id`.
    """
    rows = rows.sort_values(["problem_id", "attempt"])
    model, numbers = rows["model"].iloc[0], rows["attempt"].unique()
    problems = rows["problem_id"].unique()
    if len(rows) != len(problems) * len(numbers):
        found = rows["problem_id"].value_counts()
        raise InputError(
            f"attempts: problem {found.idxmin()!r} of model {model!r} has {found.min()} of its "
            f"{len(numbers)} attempts; every problem needs the same ones"
        )
    samples = int((numbers != GREEDY).sum())
    if set(numbers) - {GREEDY} != set(range(1, samples + 1)):
        raise InputError(
            f"attempts: those of model {model!r} are numbered {sorted(numbers.tolist())}; "
            "number its samples from 1 on, without gaps, and its greedy attempt 0"
        )

    shape = (len(problems), len(numbers))
    correct = rows["correct"].to_numpy(dtype=bool).reshape(shape)
    answers = _numbered(rows[extraction]).reshape(shape)
    target = np.where(correct, answers, -1).max(axis=1, keepdims=True)
    differs = correct != ((answers == target) & (answers >= 0))
    if differs.any():
        problem, attempt = np.argwhere(differs)[0]
        raise InputError(
            f"attempts: 'correct' of model {model!r}, problem {problems[problem]!r}, attempt "
            f"{numbers[attempt]} contradicts the answers in {extraction!r}; judge these answers, "
            "or choose the extraction that was judged"
        )
    tokens = rows["completion_tokens"].to_numpy(dtype=np.float64).reshape(shape)

    values: dict[tuple[str, int], np.ndarray] = {}
    first = 0
    if GREEDY in numbers:
        values["greedy", 1] = correct[:, 0].astype(np.float64)
        first = 1 if samples else 0
    if samples:
        ks = range(1, samples + 1)
        chances = np.array([[pass_at_k(samples, c, k) for k in ks] for c in range(samples + 1)])[
            correct[:, first:].sum(axis=1)
        ]
        values |= {("pass_at_k", k): chances[:, k - 1] for k in ks}
        votes = np.array(
            [
                _votes_won(given, right)
                for given, right in zip(answers[:, first:].tolist(), target[:, 0], strict=True)
            ]
        )
        values |= {("maj_at_k", k): votes[:, k - 1] for k in ks}
    values["invalid_rate", 1] = (answers[:, first:] < 0).mean(axis=1)
    values["mean_tokens", 1] = tokens[:, first:].mean(axis=1)
    return values


def _numbered(answers: pd.Series) -> np.ndarray:
    """Give equal numbers equal codes from 0 on, and -1 to what is no number."""
    codes, texts = pd.factorize(answers)
    known: dict[object, int] = {None: -1}
    meaning = [known.setdefault(parse_number(text), len(known) - 1) for text in texts]
    return np.array(meaning)[codes]


def _votes_won(answers: list[int], target: int) -> tuple[float, ...]:
    votes = Counter(answers)
    invalid = votes.pop(-1, 0)
    correct = votes.pop(int(target), 0)
    return _majority_accuracies(correct, tuple(sorted(votes.values())), invalid)


def _replicates(rows: pd.DataFrame) -> list[tuple[tuple[int, ...], pd.DataFrame]]:
    """Return a model's attempts by training seed, as a tuple; an empty one where none is told."""
    if SEED not in rows:
        return [((), rows)]
    return [((seed,), own) for seed, own in rows.groupby(SEED, sort=False)]


def _pooled(
    values: dict[tuple[int, ...], dict[tuple[str, int], np.ndarray]], limits: tuple[float, float]
) -> Iterator[tuple[str, int, float, Interval]]:
    """Give each metric its interval over problems and training seeds, and its p-value against 0.

    Args:
        values: (problems,) values for each (metric, k), by the training seeds of those compared.
        limits: of shares or of their differences; tokens have other ones.
    """
    first = next(iter(values.values()))
    for metric, k in first:
        columns = [column[metric, k] for column in values.values()]
        column = np.concatenate(columns)
        problems = np.tile(np.arange(len(columns[0])), len(columns))
        names = [SEED, OPPONENT_SEED][: len(next(iter(values)))]
        labels = pd.DataFrame(list(values), columns=names) if names else pd.DataFrame()
        seeds = [np.repeat(each.to_numpy(), len(columns[0])) for each in seeds_in(labels)]
        bounded = limits
        if metric == "mean_tokens":
            bounded = LENGTH if limits == SHARE else None
        p_value = np.nan
        if limits == DIFFERENCE:
            p_value = paired_p(column, problems, limits=bounded, seeds=seeds)
        # Of several attempts a problem's value may differ by little.
        step = float(metric == "greedy")
        result = mean_interval(column, problems, limits=bounded, seeds=seeds, step=step)
        yield metric, k, p_value, result
