"""What a kind of judge is: what it is asked, how its verdicts are read, and who wins by them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from sami_pipeline.evaluation.statistics import ANSWER_KEY, require_rows
from sami_pipeline.evaluation.verdict_parser import COMPARISONS, INVALID, NO_VERDICT, TIE

MODEL_FIRST, OPPONENT_FIRST, SINGLE = "model_first", "opponent_first", "single"

# Ratings that differ by no more are a tie, as FastChat has it.
_TIE = 0.1

Pairs = Sequence[tuple[str, str]]
Calls = Iterator[tuple[str, str, str, Mapping[str, str]]]


class ConstrainedVerdict(NamedTuple):
    """How a judge is held to a verdict: the words it goes on with, and what it may write then."""

    opening: str
    choices: tuple[str, ...]


Orders = Literal["both", "random"]

COMPARISON_CHOICE = ConstrainedVerdict("My final verdict is: [[", COMPARISONS)


def both_orders(pairs: Pairs) -> Calls:
    """Yield each pair twice: model, opponent, order, and which model takes which side."""
    for model, opponent in pairs:
        yield model, opponent, MODEL_FIRST, {"answer_a": model, "answer_b": opponent}
        yield model, opponent, OPPONENT_FIRST, {"answer_a": opponent, "answer_b": model}


def each_alone(pairs: Pairs) -> Calls:
    """Yield each model once, whatever pairs it is in, without an opponent."""
    for model in dict.fromkeys(name for pair in pairs for name in pair):
        yield model, "", SINGLE, {"answer": model}


def drawn_order(orders: Sequence[str], seed: int, *match: str) -> str:
    """Return one of the orders, drawn with equal chances; the same of the same match and question.

    Args:
        orders: such as (MODEL_FIRST, OPPONENT_FIRST).
        seed: decides what is drawn.
        match: model, opponent and question, whose turns and constitutions share an order. Models
            and questions that come later change nothing for the others.
    """
    named = "\n".join([str(seed), *match]).encode()
    drawn = int.from_bytes(hashlib.sha256(named).digest()[:8], "big")
    return orders[drawn % len(orders)]


def decide_comparisons(judgements: pd.DataFrame, pairs: Pairs = ()) -> pd.DataFrame:
    """Return a verdict for each comparison, from both orders or from the one that was asked.

    Of both orders a win needs both to agree, all else is a tie, and a comparison without a valid
    verdict in both is invalid. Where every comparison was asked in one order, its verdict decides.

    Args:
        judgements: ``judge, model, opponent, question_id, category, turn, constitution, order,
            verdict``, both orders of every comparison or one order of every comparison.
        pairs: not read; the judgements name them.

    Returns:
        The columns of ``judge_checklist``, without scores (NaN), in the order of the judgements.
    """
    key = ["model", "opponent", *ANSWER_KEY]
    require_rows(judgements, [*key, "order"], ["judge", "category", "verdict"])
    unread = dict.fromkeys(NO_VERDICT, INVALID)
    outcomes = {
        MODEL_FIRST: {"A": "model", "B": "opponent", "C": "tie", **unread},
        OPPONENT_FIRST: {"A": "opponent", "B": "model", "C": "tie", **unread},
    }
    first, second = (judgements[judgements["order"] == order].set_index(key) for order in outcomes)
    if not judgements.duplicated(key).any():
        read = [outcomes[row.order][row.verdict] for row in judgements.itertuples()]
        return _verdicts(_unscored(judgements, read))
    if not first.index.sort_values().equals(second.index.sort_values()):
        raise ValueError("a comparison lacks a verdict in one of its orders")
    one = first["verdict"].map(outcomes[MODEL_FIRST])
    other = second["verdict"].map(outcomes[OPPONENT_FIRST]).reindex(one.index)
    winner = np.select([(one == INVALID) | (other == INVALID), one == other], [INVALID, one], "tie")
    return _verdicts(_unscored(first.reset_index(), winner))


def majority(verdicts: Sequence[str]) -> str:
    """Return the verdict that was given most often, a tie where two were.

    Repeats without a verdict do not vote, unless they are more than half: then there is none.
    """
    votes = Counter(verdict for verdict in verdicts if verdict not in NO_VERDICT)
    if 2 * votes.total() < len(verdicts):
        return INVALID
    (first, most), *others = votes.most_common()
    if others and others[0][1] == most:
        return TIE if set(votes) <= set(COMPARISONS) else INVALID
    return first


def mean_rating(verdicts: Sequence[str]) -> str:
    """Return the mean of the ratings; none where more than half of the repeats have none."""
    ratings = [float(verdict) for verdict in verdicts if verdict not in NO_VERDICT]
    if 2 * len(ratings) < len(verdicts):
        return INVALID
    return f"{sum(ratings) / len(ratings):.6g}"


def _unscored(comparisons: pd.DataFrame, winner: Sequence[str]) -> pd.DataFrame:
    return comparisons.assign(model_score=np.nan, opponent_score=np.nan, winner=winner)


def decide_ratings(judgements: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """Return a verdict for each pair of rated answers: the higher rating wins.

    Ratings that differ by at most 0.1 tie, as in FastChat; one that is invalid makes the
    comparison invalid.

    Args:
        judgements: ``judge, model, question_id, category, turn, constitution, verdict``.
        pairs: (model, opponent) names.
    """
    graded = rated(judgements)
    parts = []
    for model, opponent in pairs:
        columns = ["judge", "category", *ANSWER_KEY, "rating"]
        both = graded.loc[graded["model"] == model, columns].merge(
            graded.loc[graded["model"] == opponent, [*ANSWER_KEY, "rating"]],
            on=ANSWER_KEY, how="outer", suffixes=("", "_opponent"), indicator=True,
            validate="1:1",
        )  # fmt: skip
        if (both["_merge"] != "both").any():
            raise ValueError(f"{model} and {opponent} were not rated on the same answers")
        lead = both["rating"] - both["rating_opponent"]
        winner = np.select(
            [lead.isna(), lead > _TIE, lead < -_TIE], [INVALID, "model", "opponent"], "tie"
        )
        parts.append(
            both.assign(
                model=model,
                opponent=opponent,
                model_score=both["rating"],
                opponent_score=both["rating_opponent"],
                winner=winner,
            )
        )
    return _verdicts(pd.concat(parts, ignore_index=True))


def rated(judgements: pd.DataFrame) -> pd.DataFrame:
    """Return judgements with ``rating``, NaN where there is no verdict."""
    require_rows(judgements, ["model", *ANSWER_KEY], ["judge", "category", "verdict"])
    numbers = judgements["verdict"].where(~judgements["verdict"].isin(NO_VERDICT))
    return judgements.assign(rating=pd.to_numeric(numbers).astype(float))


def _verdicts(decided: pd.DataFrame) -> pd.DataFrame:
    return decided[
        [
            "model", "opponent", "question_id", "category", "turn", "constitution",
            "model_score", "opponent_score", "winner", "judge",
        ]
    ]  # fmt: skip


@dataclass(frozen=True)
class JudgeKind:
    """One kind of model that judges.

    Attributes:
        name: its name in ``judge.kind`` and in the tables' column ``judge``.
        prompt: name of the prompt for the first turn; the second turn's ends in "-multi-turn".
        parse: reads the verdict from a text, told whether the text was cut off: one of
            ``constrained.choices`` without brackets, "invalid" or "contradictory".
        constrained: how the judge is held to a bare verdict.
        prompt_with_reference: name of the prompt with reference answers, where there is one.
        sees_constitution: the prompt shows the constitution that the answers were given under.
        calls: plans the calls from the pairs of models.
        decide: makes verdicts on pairs, the rows of ``schemas.Verdicts``, from the judgements and
            the pairs.
        rates: the verdicts are ratings, of which there is a table of means.
        combine: makes one verdict of those of a call's repeats, two or more.
        ties: "allowed" takes a judge's tie as one. "unanswered" is the rule of arXiv 2410.01704: a
            comparison of which neither side holds an answer is a tie whatever the judge says, and
            elsewhere a tie is no verdict.
    """

    name: str
    prompt: str
    parse: Callable[[str, bool], str]
    constrained: ConstrainedVerdict = COMPARISON_CHOICE
    prompt_with_reference: str | None = None
    sees_constitution: bool = False
    calls: Callable[[Pairs], Calls] = both_orders
    decide: Callable[[pd.DataFrame, Pairs], pd.DataFrame] = decide_comparisons
    rates: bool = False
    combine: Callable[[Sequence[str]], str] = majority
    ties: Literal["allowed", "unanswered"] = "allowed"

    def matches(self, pairs: Pairs) -> dict[tuple[str, str], dict[str, Mapping[str, str]]]:
        """Return the calls by (model, opponent) and order, each with the side of every model."""
        found: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
        for model, opponent, order, sides in self.calls(pairs):
            found.setdefault((model, opponent), {})[order] = sides
        return found

    def calls_an_answer(self, pairs: Pairs, orders: Orders) -> int:
        """Return how many calls there are for everything that all models answered."""
        ways = self.matches(pairs).values()
        return len(ways) if orders == "random" else sum(map(len, ways))

    @property
    def sides(self) -> int:
        """How many answers a call shows."""
        return max(len(sides) for *_, sides in self.calls([("a", "b")]))
