"""Is the judge any good? What can be said of a judge without people's own verdicts.

For every judge:

- **invalid_rate**: verdicts that name no winner, of all.
- **longer_preferred**: of the decided verdicts (no tie) on answers of unequal length, those that
  go to the longer answer. Length in characters, as in `length_control`. Where longer answers are
  better, a good judge is above one half: compare it with the checklist's.

For each pair of judges, the later one against the earlier (the checklist is the first), on the same
comparisons:

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

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.intervals import (
    LEVEL,
    NO_ROWS,
    Interval,
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

    Returns:
        One row per (judge, metric, constitution, category of `by_category`), the metrics as far as
        they apply to the judge: `reference` (the judge compared with, or ""), `n` questions, `rows`
        (comparisons or calls that the metric is about), `value` and its interval over questions.
        With n = 0 they are NaN.

    Raises:
        ValueError: If a table is incomplete, or an answer is missing.
    """
    require_verdicts(verdicts)
    # Every comparison of replicates is one of the judge's, whatever the models' seeds.
    rows = labelled(with_lengths(verdicts, answers))
    judgements = None if judgements is None else labelled(judgements)
    judges = sorted(rows["judge"].unique(), key=lambda judge: judge != CHECKLIST)
    records = []
    for judge, own in rows.groupby("judge", sort=False):
        measures = [*_of_verdicts(own)]
        for earlier in judges[: judges.index(judge)]:
            measures += _against(own, rows[rows["judge"] == earlier], earlier)
        if judgements is not None and (judgements["judge"] == judge).any():
            measures += _of_calls(judgements[judgements["judge"] == judge])
        for metric, reference, estimate, frame in measures:
            values = ["constitution", "category", "value", "other"]
            frame = with_clusters(frame, [column for column in values if column in frame])
            for constitution, asked in by_constitution(frame):
                for category, part in by_category(asked):
                    result = estimate(part.dropna(subset="value"))
                    key = (judge, reference, constitution, category, metric)
                    records.append((*key, *result.counts, *result.bounds))
    columns = ["judge", "reference", "constitution", "category", "metric", "n", "rows", "value"]
    return pd.DataFrame(records, columns=[*columns, "ci_low", "ci_high"])


_Estimate = Callable[[pd.DataFrame], Interval]
_Measure = tuple[str, str, _Estimate, pd.DataFrame]


def _mean(rows: pd.DataFrame) -> Interval:
    if rows.empty:
        return NO_ROWS
    return mean_interval(rows["value"], rows["question_id"])


def _kappa(rows: pd.DataFrame) -> Interval:
    if rows.empty:
        return NO_ROWS
    return cohen_kappa(rows["value"], rows["other"], rows["question_id"])


def cohen_kappa(first: ArrayLike, second: ArrayLike, clusters: ArrayLike) -> Interval:
    """Cohen's kappa of two judges' outcomes, and its 95 % interval over whole clusters.

    A t-interval with the variance between clusters of kappa's linear approximation (Fleiss, Cohen &
    Everitt 1969, "Large sample standard errors of kappa and weighted kappa", for clusters), to
    which two imagined clusters of mean size are added, as in `mean_interval`: one in which both
    judges agree and one in which they never do, each outcome as likely as any other. It is made on
    kappa and on artanh(kappa) (Fisher's z of a correlation, which kappa is like), and the lower of
    both lower bounds and the higher of both upper ones are taken: where outcomes are uneven the
    first is too short at one end, where nearly all agree the second. A simulation chose it
    (`tests/evaluation/test_coverage.py`; 5 to 80 clusters, kappa 0 to 0.95, even and uneven
    outcomes, alike and not in both judges): it holds the truth in 94 % of draws at the worst
    point; the interval on kappa alone in 89 %, on artanh(kappa) alone or on log(1 - kappa) in 73
    and 68 %, the percentile bootstrap in 72 %.

    Args:
        first: (rows,) "model", "tie" or "opponent".
        second: (rows,) the same, of the other judge.
        clusters: (rows,) sortable label of each row's cluster.

    Returns:
        (observed − expected) / (1 − expected) agreement, in [-1, 1]. NaN where both judges give the
        same single outcome throughout; no interval then, nor with a single cluster.
    """
    from scipy.special import stdtrit

    labels, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    codes = [
        pd.Categorical(outcomes, categories=_CLASSES).codes.astype(np.int64)
        for outcomes in (first, second)
    ]
    size, number, rows = len(_CLASSES), labels.size, cluster.size
    cell = (cluster * size + codes[0]) * size + codes[1]
    # (clusters, outcome of the first, outcome of the second)
    tables = np.bincount(cell, minlength=number * size**2).reshape(number, size, size)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate, _ = _kappa_and_slopes(tables.sum(axis=0) / rows)
    if number < 2 or np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan, number, rows)
    agree = np.eye(size) / size
    differ = (1 - np.eye(size)) / (size * (size - 1))
    tables = np.concatenate([tables, np.stack([agree, differ]) * rows / number])
    shares = tables.sum(axis=0) / tables.sum()
    centre, slopes = _kappa_and_slopes(shares)
    each = tables.sum(axis=(1, 2), keepdims=True)
    moves = ((tables - shares * each) * slopes).sum(axis=(1, 2)) / tables.sum()
    error = np.sqrt((moves**2).sum() * len(moves) / (len(moves) - 1))
    margin = float(stdtrit(number - 1, (1 + LEVEL) / 2)) * error
    # On Fisher's z the margin is divided by its derivative; kappa of the imagined is never at ±1.
    turned = np.tanh(np.arctanh(centre) + np.array([-1, 1]) * margin / (1 - centre**2))
    low = max(-1.0, min(centre - margin, turned[0]))
    high = min(1.0, max(centre + margin, turned[1]))
    return Interval(estimate, float(min(low, estimate)), float(max(high, estimate)), number, rows)


def _kappa_and_slopes(shares: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return kappa of a table of shares that sum to one, and its derivative in each of them."""
    first, second = shares.sum(axis=1), shares.sum(axis=0)
    observed, expected = np.trace(shares), first @ second
    kappa = float((observed - expected) / (1 - expected))
    raised = second[:, None] + first[None, :]
    slopes = (np.eye(len(shares)) - (1 - kappa) * raised) / (1 - expected)
    return kappa, slopes


def _of_verdicts(own: pd.DataFrame) -> Iterator[_Measure]:
    yield "invalid_rate", "", _mean, own.assign(value=(own["winner"] == INVALID).astype(float))
    lead = own["model_length"] - own["opponent_length"]
    won = own["winner"].map({"model": 1, "opponent": -1})
    to_longer = (lead * won > 0).astype(float).where(won.notna() & (lead != 0))
    yield "longer_preferred", "", _mean, own.assign(value=to_longer)


def _against(own: pd.DataFrame, reference: pd.DataFrame, name: str) -> Iterator[_Measure]:
    other = reference.set_index(COMPARISON_KEY)["winner"]
    index = pd.MultiIndex.from_frame(own[COMPARISON_KEY])
    both = own.assign(other=other.reindex(index).to_numpy())
    decided = both["winner"].isin(_DECIDED) & both["other"].isin(_DECIDED)
    same = (both["winner"] == both["other"]).astype(float)
    yield "agreement", name, _mean, both.assign(value=same.where(decided))
    valid = both["winner"].isin(_CLASSES) & both["other"].isin(_CLASSES)
    yield "kappa", name, _kappa, both.assign(value=both["winner"].where(valid))


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
