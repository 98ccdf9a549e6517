"""Tables of results with intervals and tests: win rates, compliance, differences, degeneration.

Win rates with length controlled are in `length_control`, how good a judge is in `judge_quality`,
how the intervals and tests are made in `intervals`.

The **constitution** is a dimension of every table, as the turn is: what a model does when it is
asked for the desired principles and when it is asked for their opposite are two questions, and no
number here averages over both. Nor does any average a principle with its antithesis.

`n` counts questions, which is what was resampled: the answers to one question (its turns and
statements) are not independent. `rows` counts what the mean is over.

Where models were trained with several seeds (`seeds`), rows of all replicates are taken together,
and intervals and p-values are over questions and training seeds; the column `seeds` counts these,
and is absent where every model was trained once.

`p_holm` is `p_value` corrected for the number of categories that a comparison has
(`with_corrected_p`). A cell with fewer than two questions has no interval (NaN).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from sami_pipeline.evaluation.intervals import (
    DIFFERENCE,
    LENGTH,
    NO_ROWS,
    holm,
    mean_interval,
    paired_p,
)
from sami_pipeline.evaluation.seeds import (
    OPPONENT_SEED,
    SEED,
    Lineage,
    seed_columns,
    seed_pairs,
    seeds_in,
    with_seeds,
)
from sami_pipeline.tables import StoredTable, columns_of

PAPER_CATEGORIES = (
    "humanities",
    "stem",
    "extraction",
    "coding",
    "math",
    "reasoning",
    "roleplay",
)
"""The seven categories that arXiv 2410.01704 reports."""

MT_BENCH_CATEGORIES = ("writing", *PAPER_CATEGORIES)
"""All eight categories of MT-Bench, arXiv 2306.05685."""

OVERALL = "overall"
OVERALL_PAPER = "overall_paper"
ALL_PRINCIPLES = "all"

BOTH_TURNS = "both"

ANSWER_KEY = ["question_id", "turn", "constitution"]
COMPARISON_KEY = ["model", "opponent", *ANSWER_KEY]
OUTCOMES = ("model", "tie", "opponent", "invalid")
POINTS = {"model": 1.0, "tie": 0.5, "opponent": 0.0}
"""What a valid verdict adds to the adjusted win rate."""
STATEMENT_KEY = [*ANSWER_KEY, "principle"]

DESIRED = "desired"
"""The constitution of the headline, with the first turn: the paper's question."""

FIRST_TURN = "1"


_NO_LINEAGE: Mapping[str, str] = {}


def in_order(categories: Iterable[str]) -> list[str]:
    """Return the different categories: MT-Bench's first and in its order, others alphabetically."""
    present = set(categories)
    known = [category for category in MT_BENCH_CATEGORIES if category in present]
    return known + sorted(present.difference(known))


def by_category(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split rows by category, then take them together.

    Args:
        frame: Rows with a `category`.

    Yields:
        `(category, its rows)` for each category present, MT-Bench's first and in its order, others
        alphabetically; then `overall` with all rows, and `overall_paper` with the rows of
        `PAPER_CATEGORIES` if there are any.

    Raises:
        ValueError: If a category is called like one of the two summaries.
    """
    present = set(frame["category"])
    if taken := present & {OVERALL, OVERALL_PAPER}:
        raise ValueError(f"reserved for summaries, no category: {sorted(taken)}")
    for category in in_order(present):
        yield category, frame[frame["category"] == category]
    if present:
        yield OVERALL, frame
    if present.intersection(PAPER_CATEGORIES):
        yield OVERALL_PAPER, frame[frame["category"].isin(PAPER_CATEGORIES)]


def require_rows(
    frame: pd.DataFrame, key: Sequence[str], columns: Sequence[str], booleans: Sequence[str] = ()
) -> None:
    """Check that a table can be summarised without dropping anything silently.

    Args:
        frame: The table.
        key: Columns that together name a row, with those of training seeds where there are any.
        columns: Further columns that must be there.
        booleans: Further columns that must be there and hold booleans.

    Raises:
        ValueError: If a column or all rows are missing, a value is missing, a boolean column holds
            something else, or a key occurs twice.
    """
    key = [*key, *(name for name in seed_columns(frame) if name not in key)]
    needed = [*key, *columns, *booleans]
    if missing := [column for column in needed if column not in frame]:
        raise ValueError(f"columns missing: {missing}")
    if frame.empty:
        raise ValueError("no rows to summarise")
    if empty := [column for column in needed if frame[column].isna().any()]:
        raise ValueError(f"missing values in columns {empty}")
    for column in booleans:
        if not pd.api.types.is_bool_dtype(frame[column]):
            raise ValueError(f"column {column!r} must be boolean, is {frame[column].dtype}")
    if (repeated := frame.duplicated(list(key))).any():
        raise ValueError(f"more than one row for {describe(frame[repeated].iloc[0], key)}")


def describe(row: pd.Series, key: Sequence[str]) -> str:
    """Return a row's key in words, for messages."""
    values = {column: row[column] for column in key}
    # Not repr throughout: numpy's numbers would read "np.int64(81)".
    return ", ".join(
        f"{column}={value!r}" if isinstance(value, str) else f"{column}={value}"
        for column, value in values.items()
    )


def require_verdicts(verdicts: pd.DataFrame) -> None:
    """Check a table of verdicts.

    Args:
        verdicts: One row per (judge, model, opponent, question_id, turn, constitution), with
            `category` and `winner`, one of `OUTCOMES`.

    Raises:
        ValueError: If the table is incomplete (`require_rows`) or a winner is none of the four.
    """
    require_rows(verdicts, ["judge", *COMPARISON_KEY], ["category", "winner"])
    if unknown := set(verdicts["winner"]).difference(OUTCOMES):
        raise ValueError(f"unknown winners {sorted(map(str, unknown))}; known: {OUTCOMES}")


def with_clusters(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of a table, and each row's question as its place among all, sorted by id.

    Training seeds are kept too.

    Intervals over questions need their order alone; numbers are sorted in a tenth of the time of
    texts, and that in every cell.
    """
    question = pd.factorize(frame["question_id"], sort=True)[0]
    kept = [*columns, *(name for name in seed_columns(frame) if name not in columns)]
    return frame[kept].assign(question_id=question)


def by_turn(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield `both` with all rows, then each turn present ("1", "2") with its own."""
    yield BOTH_TURNS, frame
    for turn, rows in frame.groupby("turn", sort=True):
        yield str(turn), rows


def with_corrected_p(
    table: pd.DataFrame, comparison: Sequence[str], matches: Sequence[str]
) -> pd.DataFrame:
    """Return a table with `p_holm`, its `p_value` corrected within families of comparisons.

    The categories of one comparison are a family, since a reader looks for the ones that differ. A
    summary over categories is in a family with the same summary of the other matches.

    Args:
        table: Rows with `category`, `p_value`, and the other columns named here.
        comparison: Columns that together name a comparison, whose rows are its categories.
        matches: Those of them that name who is compared.
    """
    summary = table["category"].isin([OVERALL, OVERALL_PAPER])
    corrected = pd.Series(np.nan, index=table.index)
    for rows, key in (
        (table[~summary], list(comparison)),
        (table[summary], ["category", *(name for name in comparison if name not in matches)]),
    ):
        for _, family in rows.groupby(key, sort=False):
            corrected[family.index] = holm(family["p_value"].tolist())
    return table.assign(p_holm=corrected)


def by_constitution_and_turn(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (constitution, turn of `by_turn`, rows), the desired constitution first."""
    for constitution, rows in by_constitution(frame):
        for turn, part in by_turn(rows):
            yield constitution, turn, part


def by_constitution(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (constitution, its rows), the desired one first, the others by name."""
    parts = dict(list(frame.groupby("constitution")))
    for name in sorted(parts, key=lambda name: (name != DESIRED, name)):
        yield name, parts[name]


def win_rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Win rates of each model against each opponent, per judge, constitution, turn and category.

    `win_rate` is w / (w + l + t) and `adjusted_win_rate` (w + t/2) / (w + l + t), as FastChat's
    `show_result.py` defines them.

    Args:
        verdicts: Rows as `require_verdicts` wants them.

    Returns:
        One row per (judge, constitution, turn of `by_turn`, model, opponent, category of
        `by_category`), in this order. Invalid verdicts are counted in `invalid` and are in neither
        `n` nor the rates; a cell without any valid one has NaN rates. `if_invalid_lost` and
        `if_invalid_won` are the adjusted rate over all verdicts, were every invalid one a loss or
        a win: bounds without an assumption on what is missing (Manski, 1990), between which the
        adjusted rate lies. `p_value` is that of wins
        against losses, `detectable` the smallest departure of the adjusted rate from one half that
        so many questions would show (`intervals.Interval`).

    Raises:
        ValueError: As `require_verdicts`.
    """
    require_verdicts(verdicts)
    records = []
    for judge, constitution, turn, model, opponent, category, rows in _win_rate_cells(verdicts):
        valid = rows[rows["winner"] != "invalid"]
        points = valid["winner"].map(POINTS).to_numpy(dtype=np.float64)
        strict = adjusted = NO_ROWS
        p_value = np.nan
        if len(valid):
            questions, seeds = valid["question_id"], seeds_in(valid)
            strict = mean_interval(points == 1, questions, seeds=seeds)
            adjusted = mean_interval(points, questions, seeds=seeds, step=0.5)
            p_value = paired_p(2 * points - 1, questions, seeds=seeds)
        wins, ties, losses, invalid = (int((rows["winner"] == name).sum()) for name in OUTCOMES)
        records.append(
            {
                "judge": judge,
                "constitution": constitution,
                "turn": turn,
                "model": model,
                "opponent": opponent,
                "category": category,
                "n": adjusted.n,
                "rows": adjusted.rows,
                "seeds": adjusted.seeds,
                "win_rate": strict.estimate,
                "ci_low": strict.low,
                "ci_high": strict.high,
                "wins": wins,
                "ties": ties,
                "losses": losses,
                "invalid": invalid,
                "adjusted_win_rate": adjusted.estimate,
                "adjusted_ci_low": adjusted.low,
                "adjusted_ci_high": adjusted.high,
                "if_invalid_lost": points.sum() / len(rows),
                "if_invalid_won": (points.sum() + invalid) / len(rows),
                "detectable": adjusted.detectable,
                "p_value": p_value,
            }
        )
    return with_corrected_p(
        with_seeds(verdicts, pd.DataFrame(records)),
        ["judge", "constitution", "turn", "model", "opponent"],
        matches=["model", "opponent"],
    )


def _win_rate_cells(
    verdicts: pd.DataFrame,
) -> Iterator[tuple[str, str, str, str, str, str, pd.DataFrame]]:
    columns = ["judge", "model", "opponent", "constitution", "turn", "category", "winner"]
    verdicts = with_clusters(verdicts, columns)
    for judge, judged in verdicts.groupby("judge", sort=False):
        for constitution, turn, asked in by_constitution_and_turn(judged):
            for (model, opponent), met in asked.groupby(["model", "opponent"], sort=False):
                for category, rows in by_category(met):
                    yield judge, constitution, turn, model, opponent, category, rows


def complies(checked: pd.DataFrame) -> pd.Series:
    """Tell which statements were followed: the check passed and the answer is not degenerate.

    Args:
        checked: Rows with booleans `passed` and `degenerate`.

    Returns:
        (rows,) booleans with the rows' index.
    """
    return (checked["passed"] & ~checked["degenerate"]).rename("complies")


def _require_checked(checked: pd.DataFrame) -> None:
    require_rows(
        checked, ["model", *STATEMENT_KEY], ["category", "stance"], ["passed", "degenerate"]
    )


def compliance(
    checked: pd.DataFrame, baseline: str | None = None, lineage: Lineage = _NO_LINEAGE
) -> pd.DataFrame:
    """Share of the statements that each model's answers follow, by stance and principle.

    Args:
        checked: One row per (model, question_id, turn, constitution, principle), that is per answer
            and statement of its constitution, with `category`, `stance`, `passed` and
            `degenerate`.
        baseline: The model that the p-values are about.
        lineage: See `seeds`.

    Returns:
        One row per (model, constitution, stance, turn of `by_turn`, principle, category of
        `by_category`); principle "all" comes first and takes all statements of the stance together.
        `rows` counts statements. `p_value` is that of the paired difference from the baseline, NaN
        for the baseline itself.

    Raises:
        ValueError: If the table is incomplete (`require_rows`), a principle is called "all", or, as
            `pair_statements`, if the baseline does not have the same statements.
    """
    _require_checked(checked)
    if (checked["principle"] == ALL_PRINCIPLES).any():
        raise ValueError(f"{ALL_PRINCIPLES!r} is reserved for all principles together")
    records = []
    for model in checked["model"].drop_duplicates():
        rows = checked[checked["model"] == model]
        if baseline is None or model == baseline:
            rows = rows.assign(followed=complies(rows), gain=np.nan)
        else:
            rows = pair_statements(checked, model, baseline, lineage)
            rows = rows.assign(followed=rows["model_complies"], gain=_gain(rows))
        for *key, cell in _statement_cells(rows, ["followed", "gain"], by_principle=True):
            own = cell.drop(columns=OPPONENT_SEED, errors="ignore")
            result = mean_interval(cell["followed"], cell["question_id"], seeds=seeds_in(own))
            p_value = np.nan
            if not cell["gain"].isna().any():
                p_value = paired_p(cell["gain"], cell["question_id"], seeds=seeds_in(cell))
            rows_of_model = result.rows // _times_compared(cell)
            counts = (result.n, rows_of_model, result.seeds)
            records.append((model, *key, *counts, *result.bounds, p_value))
    key = ["model", "constitution", "stance", "turn", "principle"]
    columns = [*key, "category", "n", "rows", "seeds", "compliance", "ci_low", "ci_high", "p_value"]
    table = with_seeds(checked, pd.DataFrame(records, columns=columns))
    return with_corrected_p(table, key, matches=["model"])


def _times_compared(pairs: pd.DataFrame) -> int:
    """Return how often each statement of a model stands in pairs: once for each it met."""
    if OPPONENT_SEED not in pairs or len(seeds_in(pairs)) == 1:
        return 1
    return pairs[OPPONENT_SEED].nunique()


def _statement_cells(
    rows: pd.DataFrame, values: Sequence[str], *, by_principle: bool
) -> Iterator[tuple]:
    """Yield (constitution, stance, turn, [principle,] category, rows) of a table of statements."""
    columns = ["constitution", "stance", "turn", "principle", "category", *values]
    rows = with_clusters(rows, columns)
    for constitution, under in by_constitution(rows):
        for stance, asked in under.groupby("stance", sort=False):
            for turn, at_turn in by_turn(asked):
                parts = [(ALL_PRINCIPLES, at_turn)]
                if by_principle:
                    parts += at_turn.groupby("principle", sort=False)
                for principle, statements in parts:
                    names = (principle,) if by_principle else ()
                    for category, cell in by_category(statements):
                        yield constitution, stance, turn, *names, category, cell


def _gain(pairs: pd.DataFrame) -> pd.Series:
    return pairs["model_complies"].astype(int) - pairs["other_complies"].astype(int)


def pair_statements(
    checked: pd.DataFrame, model: str, other: str, lineage: Lineage = _NO_LINEAGE
) -> pd.DataFrame:
    """Put two models' results on the same statements side by side.

    Args:
        checked: Rows as `compliance` takes them.
        model: Name of the first model.
        other: Name of the second model.
        lineage: See `seeds`.

    Returns:
        One row per statement, sorted by `STATEMENT_KEY`, with `STATEMENT_KEY`, `category`,
        `stance`, and the booleans `model_complies` and `other_complies`. With training seeds one
        row per statement and pair of replicates that are compared (`seeds.seed_pairs`), with
        `seed` and `opponent_seed`.

    Raises:
        ValueError: If the table is incomplete, a model has no rows, the names are the same, a
            statement is there for one model only, or its category or stance differs.
    """
    _require_checked(checked)
    if model == other:
        raise ValueError(f"cannot pair {model!r} with itself")
    sides = []
    for name in (model, other):
        rows = checked[checked["model"] == name]
        if rows.empty:
            raise ValueError(f"no rows for model {name!r}")
        columns = [*STATEMENT_KEY, "category", "stance", *seed_columns(rows)]
        sides.append(rows[columns].assign(complies=complies(rows)))
    if SEED not in checked:
        return _paired(*sides, model, other)
    ours, theirs = ({seed: rows.drop(columns=SEED) for seed, rows in side.groupby(SEED)}
                    for side in sides)  # fmt: skip
    return pd.concat(
        [
            _paired(ours[seed], theirs[other_seed], model, other).assign(
                **{SEED: seed, OPPONENT_SEED: other_seed}
            )
            for seed, other_seed in seed_pairs(checked, model, other, lineage)
        ],
        ignore_index=True,
    )


def _paired(ours: pd.DataFrame, theirs: pd.DataFrame, model: str, other: str) -> pd.DataFrame:
    sides = [
        ours.rename(columns={"complies": "model_complies"}),
        theirs.rename(columns={"complies": "other_complies"}),
    ]
    pairs = sides[0].merge(
        sides[1], on=STATEMENT_KEY, how="outer", indicator="found", suffixes=("", "_other")
    )
    if (alone := pairs["found"] != "both").any():
        row = pairs[alone].iloc[0]
        absent = other if row["found"] == "left_only" else model
        raise ValueError(
            f"{alone.sum()} statements without a counterpart; the first missing one is "
            f"model={absent!r}, {describe(row, STATEMENT_KEY)}"
        )
    for column in ("category", "stance"):
        if (differs := pairs[column] != pairs[f"{column}_other"]).any():
            where = describe(pairs[differs].iloc[0], STATEMENT_KEY)
            raise ValueError(f"{column} differs between {model!r} and {other!r} at {where}")
    return pairs[[*STATEMENT_KEY, "category", "stance", "model_complies", "other_complies"]]


def compliance_difference(
    checked: pd.DataFrame, baseline: str, lineage: Lineage = _NO_LINEAGE
) -> pd.DataFrame:
    """How much more of the same statements each model follows than a baseline model.

    Args:
        checked: Rows as `compliance` takes them.
        baseline: Name of the model to compare with.
        lineage: See `seeds`.

    Returns:
        One row per (other model, constitution, stance, turn of `by_turn`, category of
        `by_category`): the mean over statements of the paired difference, in [-1, 1], with its
        interval, its exact p-value and the smallest difference that so many questions would show.
        No rows if the baseline is alone.

    Raises:
        ValueError: As `pair_statements`.
    """
    _require_checked(checked)
    if not (checked["model"] == baseline).any():
        raise ValueError(f"no rows for the baseline {baseline!r}")
    records = []
    for model in checked["model"].drop_duplicates():
        if model == baseline:
            continue
        pairs = pair_statements(checked, model, baseline, lineage)
        pairs = pairs.assign(gain=_gain(pairs))
        for *key, cell in _statement_cells(pairs, ["gain"], by_principle=False):
            questions, seeds = cell["question_id"], seeds_in(cell)
            options = {"limits": DIFFERENCE, "seeds": seeds}
            result = mean_interval(cell["gain"], questions, **options, step=1.0)
            p_value = paired_p(cell["gain"], questions, **options)
            measures = (*result.counts, result.seeds, *result.bounds, result.detectable, p_value)
            records.append((model, baseline, *key, *measures))
    key = ["model", "baseline", "constitution", "stance", "turn"]
    measures = ["n", "rows", "seeds", "difference", "ci_low", "ci_high", "detectable", "p_value"]
    table = pd.DataFrame(records, columns=[*key, "category", *measures])
    table = with_seeds(checked, table)
    return with_corrected_p(table, key, matches=["model", "baseline"])


def estimates(
    of: pd.DataFrame, records: Iterable[tuple], names: Sequence[str], values: Sequence[str]
) -> pd.DataFrame:
    """Return results as a table whose columns have their types, also where there are no rows.

    Args:
        of: what they were computed from; results have `seeds` if it names training seeds.
        records: of each result its names, then `n`, `rows`, `seeds`, then its values.
        names: columns of text.
        values: columns of numbers.
    """
    types = dict.fromkeys(names, "str") | dict.fromkeys(["n", "rows", "seeds"], int)
    types |= dict.fromkeys(values, float)
    return with_seeds(of, pd.DataFrame(records, columns=list(types)).astype(types))


def response_lengths(responses: pd.DataFrame) -> pd.DataFrame:
    """Mean length of each model's responses under each constitution.

    Args:
        responses: One row per (model, query_id, constitution_index), with `constitution`,
            `completion_tokens` and `finish_reason` ("length" means truncated).

    Returns:
        One row per (model, constitution): the mean length in tokens of the model's own tokenizer
        and the share of truncated responses, each with its interval over queries. No rows for no
        responses.

    Raises:
        ValueError: If the table is incomplete (`require_rows`).
    """
    records = []
    if not responses.empty:
        key = ["model", "query_id", "constitution_index"]
        require_rows(responses, key, ["constitution", "completion_tokens", "finish_reason"])
    for (model, constitution), rows in responses.groupby(["model", "constitution"], sort=False):
        queries, seeds = rows["query_id"], seeds_in(rows)
        tokens = mean_interval(rows["completion_tokens"], queries, limits=LENGTH, seeds=seeds)
        truncated = mean_interval(rows["finish_reason"] == "length", queries, seeds=seeds)
        counts = (*tokens.counts, tokens.seeds)
        records.append((model, constitution, *counts, *tokens.bounds, *truncated.bounds))
    values = ["mean_tokens", "mean_tokens_ci_low", "mean_tokens_ci_high"]
    values += ["truncated_rate", "truncated_ci_low", "truncated_ci_high"]
    return estimates(responses, records, ["model", "constitution"], values)


def degeneration(answers: pd.DataFrame | StoredTable) -> pd.DataFrame:
    """How often each model's answers mostly repeat themselves, and how long they are.

    Args:
        answers: One row per (model, question_id, turn, constitution), with `category`,
            `degenerate`, `completion_tokens` and `finish_reason` ("length" means truncated).

    Returns:
        One row per (model, constitution, turn of `by_turn`, category of `by_category`): the share
        of degenerate answers, the mean length in tokens and the share of truncated answers, each
        with its interval.

    Raises:
        ValueError: If the table is incomplete (`require_rows`).
    """
    columns = ["category", "completion_tokens", "finish_reason"]
    key = ["model", *ANSWER_KEY]
    answers = columns_of(answers, [*key, *columns, "degenerate", SEED])
    require_rows(answers, key, columns, ["degenerate"])
    kept = ["model", "constitution", "turn", *columns, "degenerate"]
    answers = with_clusters(answers, kept)
    records = []
    for model, given in answers.groupby("model", sort=False):
        for constitution, turn, asked in by_constitution_and_turn(given):
            for category, rows in by_category(asked):
                questions, seeds = rows["question_id"], seeds_in(rows)
                lengths = rows["completion_tokens"]
                rate = mean_interval(rows["degenerate"], questions, seeds=seeds)
                tokens = mean_interval(lengths, questions, limits=LENGTH, seeds=seeds)
                cut_off = rows["finish_reason"] == "length"
                truncated = mean_interval(cut_off, questions, seeds=seeds)
                measures = (*rate.bounds, *tokens.bounds, *truncated.bounds)
                key = (model, constitution, turn, category)
                records.append((*key, *rate.counts, rate.seeds, *measures))
    columns = ["model", "constitution", "turn", "category", "n", "rows", "seeds"]
    columns += ["degeneration_rate", "ci_low", "ci_high"]
    for name in ("mean_tokens", "truncated"):
        value = "truncated_rate" if name == "truncated" else name
        columns += [value, f"{name}_ci_low", f"{name}_ci_high"]
    return with_seeds(answers, pd.DataFrame(records, columns=columns))
