"""Is the judge any good? What can be said of a judge without people's own verdicts.

For every judge:

- **invalid_rate**: verdicts that name no winner, of all.
- **longer_preferred**: of the decided verdicts (no tie) on answers of unequal length, those that
  go to the longer answer. Length in characters, as in `length_control`. Where longer answers are
  better, a good judge is above one half: compare it with the checklist's.

For a judge other than the checklist, against the checklist on the same comparisons:

- **agreement**: of the comparisons that both decide, those with the same winner (setup S2 of arXiv
  2306.05685, without ties). One half is chance.
- **kappa**: Cohen's kappa (Cohen 1960, "A Coefficient of Agreement for Nominal Scales") over win,
  tie and loss, on all comparisons with two valid verdicts.

For a judge that is asked in both orders, from its single calls:

- **flip_rate**: of the comparisons with a verdict in both orders, those whose two verdicts name
  different winners, a tie in one order alone included: 1 − "consistency" of arXiv 2306.05685.
- **first_preferred**: of the decided calls in both orders, or in an order that was drawn at random,
  those that prefer the answer shown first. One half is no position bias, since each answer is first
  as often as second, drawn orders by chance.
- **self_agreement**: where calls are repeated, the share of pairs of repeats of the same call, both
  with a verdict, that give the same; a call counts once, whatever number of pairs it has.
- **invalid_call_rate**: calls without a verdict that can be read, of all (single grading too);
  **contradictory_call_rate**: those of all calls that give two different verdicts.

The checklist sees nothing but verifiable principles: agreeing with it says that a judge sees
whether they were followed, and nothing about truth or use.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.intervals import (
    NO_ROWS,
    Interval,
    bootstrap_statistic,
    mean_interval,
)
from sami_pipeline.evaluation.length_control import with_lengths
from sami_pipeline.evaluation.seeds import labelled
from sami_pipeline.evaluation.statistics import (
    COMPARISON_KEY,
    by_category,
    by_constitution,
    require_rows,
    require_verdicts,
    with_clusters,
)
from sami_pipeline.evaluation.verdict_parser import CONTRADICTORY, INVALID, NO_VERDICT
from sami_pipeline.tables import StoredTable

METRICS = (
    "invalid_rate",
    "longer_preferred",
    "agreement",
    "kappa",
    "flip_rate",
    "first_preferred",
    "self_agreement",
    "invalid_call_rate",
    "contradictory_call_rate",
)
ORDERS = ("model_first", "opponent_first")
_DECIDED = ("model", "opponent")
_CLASSES = ("model", "tie", "opponent")
_CALL_KEY = [*COMPARISON_KEY, "category", "judge_model", "sample"]


def judge_quality(
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | StoredTable,
    judgements: pd.DataFrame | None = None,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> pd.DataFrame:
    """Tell how good each judge is, by category, all pairs of models taken together.

    Args:
        verdicts: Rows as `statistics.require_verdicts` wants them, of one or several judges.
        answers: One row per (model, question_id, turn, constitution), with `answer`.
        judgements: One row per call to a language model as a judge, with `judge`, `judge_model`,
            `order` ("model_first", "opponent_first" or "single"), `sample` (the number of the
            repeat), `verdict` ("A" for the answer
            shown first, "B", "C" for a tie, a rating, "invalid" or "contradictory") and the
            comparison's columns.
        resamples: Bootstrap samples per interval.
        level: Coverage of the intervals.
        seed: Seed of each interval.

    Returns:
        One row per (judge, metric, constitution, category of `by_category`), the metrics as far as
        they apply to the judge: `reference` (the judge compared with, or ""), `n` questions, `rows`
        (comparisons or calls that the metric is about), `value` and its interval over questions.
        With n = 0 they are NaN.

    Raises:
        ValueError: If a table is incomplete, or an answer is missing.
    """
    require_verdicts(verdicts)
    options = {"resamples": resamples, "level": level, "seed": seed}
    # Every comparison of replicates is one of the judge's, whatever the models' seeds.
    rows = labelled(with_lengths(verdicts, answers))
    judgements = None if judgements is None else labelled(judgements)
    records = []
    for judge, own in rows.groupby("judge", sort=False):
        measures = [*_of_verdicts(own)]
        if judge != CHECKLIST and (rows["judge"] == CHECKLIST).any():
            measures += _against(own, rows[rows["judge"] == CHECKLIST])
        if judgements is not None and (judgements["judge"] == judge).any():
            measures += _of_calls(judgements[judgements["judge"] == judge])
        for metric, reference, estimate, frame in measures:
            values = ["constitution", "category", "value", "other"]
            frame = with_clusters(frame, [column for column in values if column in frame])
            for constitution, asked in by_constitution(frame):
                for category, part in by_category(asked):
                    result = estimate(part.dropna(subset="value"), options)
                    key = (judge, reference, constitution, category, metric)
                    records.append((*key, *result.counts, *result.bounds))
    columns = ["judge", "reference", "constitution", "category", "metric", "n", "rows", "value"]
    return pd.DataFrame(records, columns=[*columns, "ci_low", "ci_high"])


_Estimate = Callable[[pd.DataFrame, dict[str, Any]], Interval]
_Measure = tuple[str, str, _Estimate, pd.DataFrame]


def _mean(rows: pd.DataFrame, options: dict[str, Any]) -> Interval:
    if rows.empty:
        return NO_ROWS
    return mean_interval(rows["value"], rows["question_id"])


def _kappa(rows: pd.DataFrame, options: dict[str, Any]) -> Interval:
    if rows.empty:
        return NO_ROWS
    return cohen_kappa(rows["value"], rows["other"], rows["question_id"], **options)


def cohen_kappa(
    first: pd.Series,
    second: pd.Series,
    clusters: pd.Series,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """Cohen's kappa of two judges' outcomes, and its bootstrap interval over whole clusters.

    Args:
        first: (rows,) "model", "tie" or "opponent".
        second: (rows,) the same, of the other judge.
        clusters: (rows,) sortable label of each row's cluster.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Seed of `numpy.random.default_rng`.

    Returns:
        (observed − expected) / (1 − expected) agreement, in [-1, 1]. NaN where both judges give the
        same single outcome throughout; a resample with that counts as -1 for the lower bound and as
        1 for the upper.
    """
    labels, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    codes = [
        pd.Categorical(outcomes, categories=_CLASSES).codes.astype(np.int64)
        for outcomes in (first, second)
    ]
    size = len(_CLASSES)
    cell = (cluster * size + codes[0]) * size + codes[1]
    tables = np.bincount(cell, minlength=labels.size * size**2).reshape(labels.size, -1)

    def kappa(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        shares = (weights @ tables).reshape(-1, size, size)
        shares /= shares.sum(axis=(1, 2), keepdims=True)
        observed = np.trace(shares, axis1=1, axis2=2)
        expected = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return (observed - expected) / (1 - expected)

    return bootstrap_statistic(
        kappa, labels[cluster], limits=(-1.0, 1.0), resamples=resamples, level=level, seed=seed
    )


def _of_verdicts(own: pd.DataFrame) -> Iterator[_Measure]:
    yield "invalid_rate", "", _mean, own.assign(value=(own["winner"] == INVALID).astype(float))
    lead = own["model_length"] - own["opponent_length"]
    won = own["winner"].map({"model": 1, "opponent": -1})
    to_longer = (lead * won > 0).astype(float).where(won.notna() & (lead != 0))
    yield "longer_preferred", "", _mean, own.assign(value=to_longer)


def _against(own: pd.DataFrame, reference: pd.DataFrame) -> Iterator[_Measure]:
    other = reference.set_index(COMPARISON_KEY)["winner"]
    index = pd.MultiIndex.from_frame(own[COMPARISON_KEY])
    both = own.assign(other=other.reindex(index).to_numpy())
    decided = both["winner"].isin(_DECIDED) & both["other"].isin(_DECIDED)
    same = (both["winner"] == both["other"]).astype(float)
    yield "agreement", CHECKLIST, _mean, both.assign(value=same.where(decided))
    valid = both["winner"].isin(_CLASSES) & both["other"].isin(_CLASSES)
    yield "kappa", CHECKLIST, _kappa, both.assign(value=both["winner"].where(valid))


def _of_calls(calls: pd.DataFrame) -> Iterator[_Measure]:
    require_rows(calls, [*_CALL_KEY, "order"], ["verdict"])
    asked = calls.pivot(index=_CALL_KEY, columns="order", values="verdict")
    if set(ORDERS) <= set(asked.columns):
        both = asked[list(ORDERS)].dropna().reset_index()
        # Only in both orders, or in one that was drawn, is each answer as likely first as second.
        shown = calls
        if len(both):
            winners = [both[order].map(_winners(order)) for order in ORDERS]
            flipped = (winners[0] != winners[1]).astype(float)
            read = winners[0].notna() & winners[1].notna()
            yield "flip_rate", "", _mean, both.assign(value=flipped.where(read))
            shown = both.melt([*_CALL_KEY], list(ORDERS), var_name="order", value_name="verdict")
        preferred = shown["verdict"].map({"A": 1.0, "B": 0.0})
        yield "first_preferred", "", _mean, shown.assign(value=preferred)
    if (calls["sample"] > 0).any():
        yield "self_agreement", "", _mean, _agreement_of_repeats(calls)
    yield (
        "invalid_call_rate",
        "",
        _mean,
        calls.assign(value=calls["verdict"].isin(NO_VERDICT).astype(float)),
    )
    contradictory = (calls["verdict"] == CONTRADICTORY).astype(float)
    yield "contradictory_call_rate", "", _mean, calls.assign(value=contradictory)


def _agreement_of_repeats(calls: pd.DataFrame) -> pd.DataFrame:
    """Return one row a call: the share of pairs of its readable repeats with the same verdict."""
    call = [*(name for name in _CALL_KEY if name != "sample"), "order"]
    read = calls[~calls["verdict"].isin(NO_VERDICT)]
    each = read.groupby([*call, "verdict"]).size()
    same, pairs = (
        (counts * (counts - 1)).groupby(call).sum() for counts in (each, each.groupby(call).sum())
    )
    return (same / pairs).rename("value").reset_index()


def _winners(order: str) -> dict[str, str]:
    first, second = _DECIDED if order == "model_first" else _DECIDED[::-1]
    return {"A": first, "B": second, "C": "tie"}
