"""One contract per table. The docstring of each says what one row is.

Kedro checks a table against its contract when it is saved and when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from sami_pipeline.evaluation import judge_quality, length_control
from sami_pipeline.evaluation.math_accuracy import JUDGED_READINGS, METRICS
from sami_pipeline.evaluation.math_readings import READINGS
from sami_pipeline.evaluation.seeds import NO_SEED, SEED_COLUMNS
from sami_pipeline.evaluation.statistics import BOTH_TURNS, OUTCOMES
from sami_pipeline.principles.constitutions import TRAINED_WORDING
from sami_pipeline.tables import StoredTable

_SPLITS = ["train", "held_out"]
_STATUSES = [
    "usable",
    "failed",
    "prompt_too_long",
    "empty",
    "same_response",
    "truncated",
    "filter_word",
    "too_short",
    "length_ratio",
    "too_similar",
    "degenerate",
    "too_long_for_student",
]
_FINISH_REASONS = ["stop", "length", "prompt_too_long", "failed"]
_CONSTITUTIONS = ["desired", "contrasting", TRAINED_WORDING, "none"]
_STANCES = ["principle", "antithesis"]


class _Table(pa.DataFrameModel):
    class Config:
        """Columns are exactly those named, of exactly the types named."""

        strict = True

    @classmethod
    def empty(cls, *args: Any) -> pd.DataFrame:
        """Return a table without rows that has the columns which every such table has.

        Those that name a row come first.
        """
        key = list(getattr(cls.Config, "unique", ()))
        required = [name for name, column in cls.to_schema().columns.items() if column.required]
        return super().empty(*args)[[*key, *(name for name in required if name not in key)]]

    @classmethod
    def tabulate(cls, rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Return rows with the columns of this contract, in their order and of their types.

        Args:
            rows: with these columns and any others, which are left out; optional columns of the
                contract that are there follow at the end.

        Raises:
            KeyError: a column is missing.
        """
        required, types = cls.empty(), super().empty().dtypes
        table = pd.DataFrame(rows) if isinstance(rows, pd.DataFrame) or rows else required
        optional = [name for name in types.index if name in table and name not in required]
        names = [*required, *optional]
        return table[names].astype(types[names].to_dict()).reset_index(drop=True)

    @classmethod
    def validate(cls, check_obj: pd.DataFrame | StoredTable, *args: Any, **options: Any) -> Any:
        """Return the table if it keeps the contract; one that is stored is read part by part.

        Training seeds, where a table has them, are a part of what names a row.
        """
        key = list(getattr(cls.Config, "unique", ()))
        seeds = [name for name in SEED_COLUMNS if name in check_obj.columns and name not in key]
        if key and seeds:
            return cls._validate_with(seeds, check_obj, *args, **options)
        if not isinstance(check_obj, StoredTable):
            return super().validate(check_obj, *args, **options)
        for part in check_obj.parts():
            super().validate(part, *args, **options)
        if key:
            names = cls.to_schema().select_columns(key)
            names.validate(check_obj.read(key), *args, **options)
        return check_obj

    @classmethod
    def _validate_with(
        cls, seeds: list[str], check_obj: pd.DataFrame | StoredTable, *args: Any, **options: Any
    ) -> Any:
        schema = deepcopy(cls.to_schema())
        schema.unique = key = [*schema.unique, *seeds]
        if not isinstance(check_obj, StoredTable):
            return schema.validate(check_obj, *args, **options)
        for part in check_obj.parts():
            schema.validate(part, *args, **options)
        schema.select_columns(key).validate(check_obj.read(key), *args, **options)
        return check_obj


class _OnATurn(_Table):
    """What is said of a model's answer to one turn of a question under one constitution."""

    model: Series[str]
    question_id: Series[str]
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    turn: Series[int] = pa.Field(isin=[1, 2])
    constitution: Series[str] = pa.Field(isin=_CONSTITUTIONS)
    # Of the model's training, where models were trained with several; -1 of one that was not.
    seed: Series[int] | None = pa.Field(ge=NO_SEED)


class _Completed(_Table):
    """What an engine of this project was given and how it ended; lengths are in tokens."""

    prompt: Series[str]
    finish_reason: Series[str] = pa.Field(isin=_FINISH_REASONS)
    prompt_tokens: Series[int] = pa.Field(ge=1)
    completion_tokens: Series[int] = pa.Field(ge=0)


class _Lengths(_Table):
    """How long a model's responses are in tokens, and the share of them that were cut off."""

    mean_tokens: Series[float] = pa.Field(ge=0)
    mean_tokens_ci_low: Series[float] = pa.Field(ge=0, nullable=True)
    mean_tokens_ci_high: Series[float] = pa.Field(ge=0, nullable=True)
    truncated_rate: Series[float] = pa.Field(ge=0, le=1)
    truncated_ci_low: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    truncated_ci_high: Series[float] = pa.Field(ge=0, le=1, nullable=True)


class Questions(_Table):
    """One row is one turn of an MT-Bench question.

    ``reference`` is the question file's own answer, else GPT-4's unless it is known to be wrong;
    ``published_reference`` is always GPT-4's.
    """

    question_id: Series[str] = pa.Field(str_length={"min_value": 1})
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    turn: Series[int] = pa.Field(isin=[1, 2])
    question: Series[str] = pa.Field(str_length={"min_value": 1})
    reference: Series[str]
    # Absent in tables of questions that earlier versions stored.
    published_reference: Series[str] | None

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("question_id", "turn")


class JudgePrompts(_Table):
    """One row is one of MT-Bench's prompts for a judge."""

    name: Series[str] = pa.Field(unique=True)
    type: Series[str] = pa.Field(isin=["pairwise", "single"])
    system_prompt: Series[str]
    prompt_template: Series[str]
    description: Series[str]
    category: Series[str]
    output_format: Series[str]


class Queries(_Table):
    """One row is one query that is trained on or held out; without ``split`` it is drawn later."""

    query_id: Series[str] = pa.Field(unique=True)
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    query: Series[str] = pa.Field(str_length={"min_value": 1})
    source: Series[str]
    split: Series[str] | None = pa.Field(isin=_SPLITS)


class Principles(_Table):
    """One row is one principle of a category, with its antithesis and both checks as JSON."""

    category: Series[str] = pa.Field(str_length={"min_value": 1})
    principle: Series[str]
    statement: Series[str] = pa.Field(str_length={"min_value": 1})
    antithesis: Series[str] = pa.Field(str_length={"min_value": 1})
    wordings: Series[str]
    check: Series[str]
    antithesis_check: Series[str]
    written_by: Series[str]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("category", "principle")


class PrincipleWriting(_Table):
    """One row is one answer of a model that was asked for a category's principles.

    ``found`` counts the pairs of principle and antithesis in it, ``kept`` those that were new and
    wanted. Status "incomplete" is an answer after which the category still lacks principles.
    """

    category: Series[str] = pa.Field(str_length={"min_value": 1})
    attempt: Series[int] = pa.Field(ge=0)
    status: Series[str] = pa.Field(
        isin=["complete", "incomplete", "malformed", "prompt_too_long", "failed"]
    )
    found: Series[int] = pa.Field(ge=0)
    kept: Series[int] = pa.Field(ge=0)
    text: Series[str]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("category", "attempt")


class Constitutions(_Table):
    """One row is one constitution of a grid for one query (or question).

    Questions may also be asked under "desired_trained_wording", the desired constitution in words
    that were trained on.
    """

    query_id: Series[str]
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    grid: Series[int] = pa.Field(ge=0)
    constitution_index: Series[int] = pa.Field(ge=0)
    constitution: Series[str] = pa.Field(isin=["desired", "contrasting", TRAINED_WORDING])
    stances: Series[str]
    text: Series[str] = pa.Field(str_length={"min_value": 1})

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("query_id", "constitution_index")


class Generations(Constitutions):
    """One row is the teacher's response to one query under one constitution.

    ``prompt_tokens`` is 0 where a server gave no answer that tells their number. ``end_token`` is
    the token that ended the response, "" where none did or a server does not tell.
    """

    query: Series[str]
    source: Series[str]
    split: Series[str] = pa.Field(isin=_SPLITS)
    prompt: Series[str]
    response: Series[str]
    finish_reason: Series[str] = pa.Field(isin=_FINISH_REASONS)
    prompt_tokens: Series[int] = pa.Field(ge=0)
    completion_tokens: Series[int] = pa.Field(ge=0)
    end_token: Series[str]


class Responses(Generations):
    """One row is a response, whether its query can be trained on, and its training prompt."""

    status: Series[str] = pa.Field(isin=_STATUSES)
    training_prompt: Series[str]


class ResponseCounts(_Table):
    """One row is how many queries of a category and split had one status.

    A query counts once for each of its grids.
    """

    category: Series[str] = pa.Field(str_length={"min_value": 1})
    split: Series[str] = pa.Field(isin=["train", "held_out"])
    status: Series[str] = pa.Field(isin=_STATUSES)
    queries: Series[int] = pa.Field(ge=1)


class TeacherCompliance(_Table):
    """One row is how often the teacher's responses followed a principle, or its antithesis.

    ``check`` says in words what was asked of a response, which may be looser than the statement.
    ``asked`` is the share that pass the check when asked to, ``unasked`` the share that pass it
    under the opposite stance: a contrast can be learnt where the two differ.
    """

    category: Series[str] = pa.Field(str_length={"min_value": 1})
    principle: Series[str]
    stance: Series[str] = pa.Field(isin=["principle", "antithesis"])
    check: Series[str]
    n_asked: Series[int] = pa.Field(ge=0)
    asked: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    n_unasked: Series[int] = pa.Field(ge=0)
    unasked: Series[float] = pa.Field(ge=0, le=1, nullable=True)


class History(_Table):
    """One row is one optimiser step of one model.

    Only SAMI has accuracies of the grid, the MI bound and KL; only DPO has those of preferences.
    Peak memory is that of the process so far, which may have done other work before.
    """

    model: Series[str]
    seed: Series[int] | None = pa.Field(ge=0)
    step: Series[int] = pa.Field(ge=1)
    loss: Series[float]
    gradient_norm: Series[float] = pa.Field(ge=0)
    learning_rate: Series[float] = pa.Field(ge=0)
    weights_moved: Series[float] = pa.Field(ge=0, le=1)
    tokens_per_second: Series[float] = pa.Field(gt=0)
    peak_memory_bytes: Series[int] = pa.Field(ge=0)
    response_tokens: Series[float] = pa.Field(gt=0, nullable=True)
    row_accuracy: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    column_accuracy: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    mi_lower_bound: Series[float] = pa.Field(nullable=True)
    kl: Series[float] = pa.Field(nullable=True)
    preference_accuracy: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    reward_margin: Series[float] = pa.Field(nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "step")


class HeldOut(_Table):
    """One row is one metric of SAMI's objective on held-out queries at one stage of a model.

    Measured on the teacher's responses; ``response_tokens`` is their length, the same for all.
    """

    model: Series[str]
    seed: Series[int] | None = pa.Field(ge=0)
    stage: Series[str] = pa.Field(isin=["before", "after", "difference"])
    metric: Series[str]
    n: Series[int] = pa.Field(ge=1)
    value: Series[float]
    ci_low: Series[float] = pa.Field(nullable=True)
    ci_high: Series[float] = pa.Field(nullable=True)


class HeldOutResponses(_Completed):
    """One row is a model's own response to a held-out query under one constitution."""

    model: Series[str]
    query_id: Series[str]
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    constitution_index: Series[int] = pa.Field(ge=0)
    constitution: Series[str] = pa.Field(isin=["desired", "contrasting"])
    response: Series[str]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "query_id", "constitution_index")


class HeldOutLengths(_Lengths):
    """One row is how long a model's own responses to held-out queries are, in its tokens.

    The objective on held-out queries (``HeldOut``) is measured on the teacher's responses, whose
    length no training changes.
    """

    model: Series[str]
    constitution: Series[str] = pa.Field(isin=["desired", "contrasting"])
    n: Series[int] = pa.Field(ge=1)
    rows: Series[int] = pa.Field(ge=1)
    seeds: Series[int] | None = pa.Field(ge=0)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "constitution")


class Answers(_Completed, _OnATurn):
    """One row is a model's answer to one turn of a question under one constitution.

    Answers from a file have no prompt, and the number of its tokens is 0.
    """

    prompt_tokens: Series[int] = pa.Field(ge=0)
    stances: Series[str]
    answer: Series[str]
    degenerate: Series[bool]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "question_id", "turn", "constitution")


class PublishedAnswers(_OnATurn):
    """One row is a published model's answer to one turn of a question.

    ``text`` is the constitution as it was asked; what the published verdicts don't tell of a length
    is counted in their tokens.
    """

    question: Series[str]
    text: Series[str]
    answer: Series[str]
    completion_tokens: Series[int] = pa.Field(ge=0)
    finish_reason: Series[str] = pa.Field(isin=["stop", "length"])
    degenerate: Series[bool]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "question_id", "turn", "constitution")


class Checked(_OnATurn):
    """One row is one statement of the constitution an answer was given under.

    ``asked`` says in words what the check asks for, which may be looser than the statement, and
    ``evidence`` by what the answer was judged ("40 words; at most 30 words asked").
    """

    principle: Series[str]
    stance: Series[str] = pa.Field(isin=["principle", "antithesis"])
    check: Series[str]
    asked: Series[str]
    evidence: Series[str]
    passed: Series[bool]
    degenerate: Series[bool]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "question_id", "turn", "constitution", "principle")


class Judgements(_OnATurn):
    """One row is what a model that judges wrote when it was asked once.

    A comparison has two, with the model's answer first and with the opponent's, or one in an order
    that was drawn. A single answer's rating has one, and no opponent. ``sample`` numbers repeats.
    """

    judge: Series[str] = pa.Field(str_length={"min_value": 1})
    judge_model: Series[str]
    opponent: Series[str]
    opponent_seed: Series[int] | None = pa.Field(ge=NO_SEED)
    order: Series[str] = pa.Field(isin=["model_first", "opponent_first", "single"])
    sample: Series[int] = pa.Field(ge=0)
    prompt: Series[str]
    text: Series[str]
    verdict: Series[str] = pa.Field(str_length={"min_value": 1})
    prompt_tokens: Series[int] = pa.Field(ge=0)
    completion_tokens: Series[int] = pa.Field(ge=0)
    finish_reason: Series[str] = pa.Field(isin=_FINISH_REASONS)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = (
            "judge", "model", "opponent", "question_id", "turn", "constitution", "order", "sample",
        )  # fmt: skip


class Verdicts(_OnATurn):
    """One row is a judge's verdict on two models' answers to the same turn.

    Scores are statements followed (checklist) or ratings (single); comparisons have none.
    """

    opponent: Series[str]
    opponent_seed: Series[int] | None = pa.Field(ge=NO_SEED)
    model_score: Series[float] = pa.Field(ge=0, nullable=True)
    opponent_score: Series[float] = pa.Field(ge=0, nullable=True)
    winner: Series[str] = pa.Field(isin=list(OUTCOMES))
    judge: Series[str] = pa.Field(str_length={"min_value": 1})

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("judge", "model", "opponent", "question_id", "turn", "constitution")


class _Asked(_Table):
    """What a row of results is about: a constitution, a turn (or both) and a category (or all).

    ``n`` counts the questions, which is what intervals are over; ``rows`` what the mean is over.
    ``seeds`` counts the training seeds, over which intervals are too, where there are several; 0 is
    that of a model that was not trained.
    """

    constitution: Series[str] = pa.Field(isin=_CONSTITUTIONS)
    turn: Series[str] = pa.Field(isin=[BOTH_TURNS, "1", "2"])
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    n: Series[int] = pa.Field(ge=0)
    rows: Series[int] = pa.Field(ge=0)
    seeds: Series[int] | None = pa.Field(ge=0)


class _Tested(_Table):
    """What says whether a result could be chance.

    ``p_value`` is an exact paired test's, ``p_holm`` the same corrected for the number of
    categories.
    """

    p_value: Series[float] = pa.Field(gt=0, le=1, nullable=True)
    p_holm: Series[float] = pa.Field(gt=0, le=1, nullable=True)


class WinRates(_Asked, _Tested):
    """One row is a model's win rate over an opponent in one category, by one judge.

    It is that under one constitution, at one turn or both. ``detectable`` is the smallest departure
    from one half of the adjusted rate that so many questions would show in 80 % of cases.
    ``if_invalid_lost`` and ``if_invalid_won`` are the adjusted rate, were every invalid verdict a
    loss or a win; without invalid verdicts both equal it.
    """

    judge: Series[str]
    model: Series[str]
    opponent: Series[str]
    win_rate: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    ci_low: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    wins: Series[int] = pa.Field(ge=0)
    ties: Series[int] = pa.Field(ge=0)
    losses: Series[int] = pa.Field(ge=0)
    invalid: Series[int] = pa.Field(ge=0)
    adjusted_win_rate: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    adjusted_ci_low: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    adjusted_ci_high: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    if_invalid_lost: Series[float] = pa.Field(ge=0, le=1)
    if_invalid_won: Series[float] = pa.Field(ge=0, le=1)
    detectable: Series[float] = pa.Field(ge=0, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("judge", "constitution", "turn", "model", "opponent", "category")


class LengthControlled(_Table):
    """One row is a model's win rate against an opponent by one judge, corrected for length.

    ``n_longer`` of the ``rows`` comparisons are on a longer answer of the model. All categories
    together, under one constitution, at one turn or both.
    """

    judge: Series[str]
    constitution: Series[str] = pa.Field(isin=_CONSTITUTIONS)
    turn: Series[str] = pa.Field(isin=[BOTH_TURNS, "1", "2"])
    model: Series[str]
    opponent: Series[str]
    method: Series[str] = pa.Field(isin=list(length_control.METHODS))
    n: Series[int] = pa.Field(ge=0)
    rows: Series[int] = pa.Field(ge=0)
    seeds: Series[int] | None = pa.Field(ge=0)
    n_longer: Series[int] = pa.Field(ge=0)
    win_rate: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    ci_low: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=0, le=1, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("judge", "constitution", "turn", "model", "opponent", "method")


class JudgeQuality(_Table):
    """One row is one measure of how good a judge is, in one category.

    ``reference`` is the judge that it is compared with, empty where the measure needs none;
    ``evaluation/judge_quality.py`` says what each metric is.
    """

    judge: Series[str]
    reference: Series[str]
    constitution: Series[str] = pa.Field(isin=_CONSTITUTIONS)
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    metric: Series[str] = pa.Field(isin=list(judge_quality.METRICS))
    n: Series[int] = pa.Field(ge=0)
    rows: Series[int] = pa.Field(ge=0)
    value: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    ci_low: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=-1, le=1, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("judge", "reference", "constitution", "category", "metric")


class Ratings(_Asked):
    """One row is a judge's mean rating of a model's answers in one category.

    They were given under one constitution, at one turn or both.
    """

    judge: Series[str] = pa.Field(str_length={"min_value": 1})
    model: Series[str]
    invalid: Series[int] = pa.Field(ge=0)
    rating: Series[float] = pa.Field(ge=1, le=10, nullable=True)
    ci_low: Series[float] = pa.Field(ge=1, le=10, nullable=True)
    ci_high: Series[float] = pa.Field(ge=1, le=10, nullable=True)


class Compliance(_Asked, _Tested):
    """One row is how often a model followed one principle (or "all" of a stance) in one category.

    ``stance`` says whether principles or their antitheses were asked for; the p-values are those of
    the paired difference from the baseline, which has none.
    """

    model: Series[str]
    stance: Series[str] = pa.Field(isin=_STANCES)
    principle: Series[str]
    compliance: Series[float] = pa.Field(ge=0, le=1)
    ci_low: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=0, le=1, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "constitution", "stance", "turn", "principle", "category")


class ComplianceDifference(_Asked, _Tested):
    """One row is a model's paired difference in compliance from the baseline in one category.

    ``detectable`` is the smallest difference that so many questions would show in 80 % of cases.
    """

    model: Series[str]
    baseline: Series[str]
    stance: Series[str] = pa.Field(isin=_STANCES)
    difference: Series[float] = pa.Field(ge=-1, le=1)
    ci_low: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    detectable: Series[float] = pa.Field(ge=0, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "baseline", "constitution", "stance", "turn", "category")


class Degeneration(_Asked, _Lengths):
    """One row is how a model's answers in one category end and how long they are.

    The share that mostly repeat themselves, the mean length in tokens, the share cut off.
    """

    model: Series[str]
    degeneration_rate: Series[float] = pa.Field(ge=0, le=1)
    ci_low: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=0, le=1, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "constitution", "turn", "category")


class Problems(_Table):
    """One row is one math problem.

    ``answer`` is empty where the solution of a training problem names no number.
    """

    split: Series[str] = pa.Field(isin=["train", "test"])
    problem_id: Series[str] = pa.Field(unique=True)
    question: Series[str] = pa.Field(unique=True, str_length={"min_value": 1})
    answer: Series[str]
    solution: Series[str]
    template: Series[str]


class Attempts(_Completed):
    """One row is one attempt of a model at a test problem; attempt 0 is greedy.

    ``answer`` is what a careful reader takes, ``reading`` where in the text it stood, and
    ``correct`` judges it. The other readings are kept too.
    """

    model: Series[str]
    seed: Series[int] | None = pa.Field(ge=NO_SEED)
    problem_id: Series[str]
    attempt: Series[int] = pa.Field(ge=0)
    text: Series[str]
    answer: Series[str]
    reading: Series[str] = pa.Field(isin=list(READINGS))
    strict: Series[str]
    flexible: Series[str]
    published: Series[str]
    correct: Series[bool]
    strict_correct: Series[bool]
    harness_strict: Series[str]
    harness_flexible: Series[str]
    reference: Series[str]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "problem_id", "attempt")


class Accuracy(_Table):
    """One row is one metric of a model over all test problems, for k attempts."""

    model: Series[str]
    metric: Series[str] = pa.Field(isin=list(METRICS))
    k: Series[int] = pa.Field(ge=1)
    n: Series[int] = pa.Field(ge=1)
    seeds: Series[int] | None = pa.Field(ge=0)
    value: Series[float] = pa.Field(ge=0)
    ci_low: Series[float] = pa.Field(nullable=True)
    ci_high: Series[float] = pa.Field(nullable=True)


class AccuracyBreakdown(_Table):
    """One row is the share of problems that a model solves, by reading, family and attempts.

    ``reading`` names the column of `Attempts` that was judged; ``family`` is one of the generated
    families, a data set, or "all". Correct as lm-evaluation-harness has it for its two readings.
    """

    model: Series[str]
    reading: Series[str] = pa.Field(isin=list(JUDGED_READINGS))
    family: Series[str] = pa.Field(str_length={"min_value": 1})
    metric: Series[str] = pa.Field(isin=["greedy", "pass_at_k", "maj_at_k"])
    k: Series[int] = pa.Field(ge=1)
    n: Series[int] = pa.Field(ge=1)
    seeds: Series[int] | None = pa.Field(ge=0)
    value: Series[float] = pa.Field(ge=0, le=1)
    ci_low: Series[float] = pa.Field(nullable=True)
    ci_high: Series[float] = pa.Field(nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "reading", "family", "metric", "k")


class AccuracyBySeed(_Table):
    """One row is one metric of one training of a model, for k attempts.

    The interval is over problems alone; ``mean`` is that of the model's seeds, ``spread`` the
    standard deviation between them.
    """

    model: Series[str]
    seed: Series[int] = pa.Field(ge=0)
    metric: Series[str] = pa.Field(isin=list(METRICS))
    k: Series[int] = pa.Field(ge=1)
    n: Series[int] = pa.Field(ge=1)
    value: Series[float] = pa.Field(ge=0)
    ci_low: Series[float] = pa.Field(nullable=True)
    ci_high: Series[float] = pa.Field(nullable=True)
    mean: Series[float] = pa.Field(ge=0)
    spread: Series[float] = pa.Field(ge=0)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("model", "seed", "metric", "k")


class AccuracyDifference(_Tested):
    """One row is a model's paired difference from the baseline in one metric."""

    model: Series[str]
    baseline: Series[str]
    metric: Series[str] = pa.Field(isin=list(METRICS))
    k: Series[int] = pa.Field(ge=1)
    n: Series[int] = pa.Field(ge=1)
    seeds: Series[int] | None = pa.Field(ge=0)
    difference: Series[float]
    detectable: Series[float] = pa.Field(ge=0, nullable=True)
    ci_low: Series[float] = pa.Field(nullable=True)
    ci_high: Series[float] = pa.Field(nullable=True)


class Comparison(_Table):
    """One row is one headline figure of one model in one run.

    All are shares, except steerability, which is a difference of shares.
    """

    run: Series[str]
    experiment: Series[str] = pa.Field(str_length={"min_value": 1})
    model: Series[str]
    metric: Series[str]
    n: Series[int] = pa.Field(ge=1)
    value: Series[float] = pa.Field(ge=-1, le=1)
    ci_low: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=-1, le=1, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("run", "experiment", "model", "metric")


class ParameterDifferences(_Table):
    """One row is the value of a parameter in one run, of those in which compared runs differ.

    ``value`` is JSON, "" where the run was made by a version without the parameter.
    """

    experiment: Series[str] = pa.Field(str_length={"min_value": 1})
    parameter: Series[str] = pa.Field(str_length={"min_value": 1})
    run: Series[str] = pa.Field(str_length={"min_value": 1})
    value: Series[str]

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("experiment", "parameter", "run")


class RunDifferences(_Tested):
    """One row is what a model does more in a run than in the first of the compared ones.

    Paired on what both runs asked: the first turn of questions, or problems. ``metric`` is what is
    compared: compliance by constitution and stance, the win rate of each judge against each
    opponent (a tie is half a win), accuracy. ``n`` counts questions or problems, ``rows`` pairs of
    statements or verdicts; ``left_out`` counts questions or problems that one run alone was asked,
    or that have no valid verdict in one of the two. ``detectable`` is the smallest difference that
    so many questions would show in four of five cases. ``p_value`` is that of the paired
    difference, ``p_holm`` corrects it for all rows that compare the same two runs.
    """

    experiment: Series[str] = pa.Field(str_length={"min_value": 1})
    run: Series[str]
    other_run: Series[str]
    model: Series[str]
    metric: Series[str]
    n: Series[int] = pa.Field(ge=1)
    rows: Series[int] = pa.Field(ge=1)
    left_out: Series[int] = pa.Field(ge=0)
    difference: Series[float] = pa.Field(ge=-1, le=1)
    ci_low: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    detectable: Series[float] = pa.Field(ge=0, nullable=True)

    class Config(_Table.Config):
        """Together these name a row."""

        unique = ("experiment", "run", "other_run", "model", "metric")
