"""Write docs/results.md from a run's tables, so that text and tables can't drift apart.

    python benchmarks/results.py                 # of `make mt-bench`, run `default`
    python benchmarks/results.py --run NAME --no-write
    python benchmarks/results.py --seeds-run three   # and of a run with --params seeds=3
    python benchmarks/results.py --math              # the part on math, of `make math`

Answers that the page quotes are chosen by a rule, not by hand: every fourth question of MT-Bench,
under the desired constitution.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "results.md"
BEGIN, END = "<!-- made by benchmarks/results.py: begin -->", "<!-- end -->"
MATH_BEGIN = BEGIN.replace("results.py", "results.py --math")
EVERY = 4


def percent(row: pd.Series, value: str, low: str = "ci_low", high: str = "ci_high") -> str:
    """Return a share and its interval, in percent."""
    return f"{100 * row[value]:.0f} [{100 * row[low]:.0f}, {100 * row[high]:.0f}]"


def p_value(row: pd.Series) -> float:
    """Return the p-value, corrected for the models that are compared with one (Holm)."""
    return row["p_value"] if pd.isna(row["p_holm"]) else row["p_holm"]


def points(row: pd.Series, value: str) -> str:
    """Return a difference, its interval and its p-value, in percentage points."""
    low, high = (100 * row[name] for name in ("ci_low", "ci_high"))
    return f"{100 * row[value]:+.1f} [{low:+.1f}, {high:+.1f}], p = {p_value(row):.2g}"


def one(table: pd.DataFrame, **where: object) -> pd.Series | None:
    """Return the only row with these values, None where there is none."""
    for name, value in where.items():
        table = table[table[name] == value]
    return None if table.empty else table.iloc[0]


def markdown(rows: list[list[str]]) -> str:
    """Return rows as a table; the first one is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


NAMES = {
    "compliance_difference": "followed where asked", "steerability_difference": "steerability",
    "antithesis": "opposite",
}  # fmt: skip
STANCES = (("desired", "principle"), ("contrasting", "antithesis"))


def by_stance(
    table: pd.DataFrame, shown: Callable[[pd.Series, str], str], value: str, **where: object
) -> list[str]:
    """Return what is shown of principles, and then of their opposites, each where asked for."""
    cells = []
    for constitution, stance in STANCES:
        row = one(table, constitution=constitution, stance=stance, category="overall", **where)
        cells.append("" if row is None else shown(row, value))
    return cells


def steered(
    table: pd.DataFrame, shown: Callable[[pd.Series, str], str], **where: object
) -> list[str]:
    """Return how much more principles, and then their opposites, are followed where asked."""
    return by_stance(table, shown, "steerability", principle="all", **where)


class Tables:
    """The tables of one run of an experiment."""

    def __init__(self, run: str, experiment: str = "mt_bench") -> None:
        self.run, self.experiment = run, experiment

    def __getitem__(self, name: str) -> pd.DataFrame:
        for layer in ("08_reporting", "07_model_output", "03_primary"):
            path = PROJECT / "data" / layer / self.run / self.experiment / f"{name}.parquet"
            if path.is_file():
                return pd.read_parquet(path)
        command = f"make {self.experiment.replace('_', '-')}"
        raise SystemExit(f"{name}.parquet of run {self.run} is missing: run `{command}` first")


def followed(tables: Tables, turn: str) -> str:
    """Return what each model follows, and how its answers end."""
    compliance, steerability = tables["compliance"], tables["steerability"]
    degeneration = tables["degeneration"]
    rows = [
        ["model", "principles followed where asked", "opposites followed where asked",
         "steerability of principles", "of opposites", "repeats itself", "asked for the opposite",
         "cut off", "tokens"],
    ]  # fmt: skip
    for model in compliance["model"].unique():
        where = {"model": model, "turn": turn, "principle": "all"}
        cells = [model, *by_stance(compliance, percent, "compliance", **where)]
        cells += steered(steerability, percent, model=model, baseline="")
        every = {"model": model, "turn": turn, "category": "overall"}
        row = one(degeneration, constitution="desired", **every)
        if row is not None:
            opposite = one(degeneration, constitution="contrasting", **every)
            cells += [
                percent(row, "degeneration_rate"),
                "" if opposite is None else percent(opposite, "degeneration_rate"),
                percent(row, "truncated_rate", "truncated_ci_low", "truncated_ci_high"),
                f"{row['mean_tokens']:.0f}",
            ]
        rows.append(cells)
    return markdown(rows)


def differences(tables: Tables, turn: str) -> str:
    """Return each trained model against the baseline, paired over the questions."""
    difference, steerability = tables["compliance_difference"], tables["steerability"]
    wins = tables["win_rates"]
    rows = [
        ["against", "principles, points", "opposites, points",
         "steerability of principles, points", "of opposites, points",
         "win rate asked for the desired"],
    ]  # fmt: skip
    for model, baseline in difference[["model", "baseline"]].drop_duplicates().to_numpy():
        where = {"model": model, "baseline": baseline, "turn": turn}
        cells = [f"{model} against {baseline}"]
        cells += by_stance(difference, points, "difference", **where)
        cells += steered(steerability, points, model=model, baseline=baseline)
        row = one(
            wins, model=model, opponent=baseline, constitution="desired", turn=turn,
            category="overall",
        )  # fmt: skip
        won = "" if row is None else percent(
            row, "adjusted_win_rate", "adjusted_ci_low", "adjusted_ci_high"
        )  # fmt: skip
        cells.append(won + ("" if row is None else f", p = {p_value(row):.2g}"))
        rows.append(cells)
    return markdown(rows)


def between(tables: Tables, turn: str, model: str, other: str) -> str:
    """Return how much more one trained model follows than another, over the same questions."""
    from sami_pipeline.evaluation.statistics import compliance_difference

    checked = tables["checked"]
    checked = checked[checked["model"].isin([model, other])]  # so nothing to correct for
    cells = by_stance(
        compliance_difference(checked, other), points, "difference", model=model, turn=turn
    )
    return (
        f"{model} against {other}, points, not corrected: principles {cells[0]}; "
        f"opposites {cells[1]}.\n"
    )


def by_principle(tables: Tables, turn: str, models: list[str]) -> str:
    """Return how often each principle and its opposite is followed where it is asked for."""
    table = tables["compliance"]
    table = table[(table["turn"] == turn) & (table["category"] == "overall")]
    rows = [["principle, then its opposite", "questions", *models]]
    for principle in table.loc[table["principle"] != "all", "principle"].unique():
        for constitution, stance in STANCES:
            here = {"principle": principle, "constitution": constitution, "stance": stance}
            found = [one(table, model=model, **here) for model in models]
            count = next((str(row["n"]) for row in found if row is not None), "")
            name = principle.replace("_", " ") + ("" if stance == "principle" else ": opposite")
            rates = ["" if row is None else f"{100 * row['compliance']:.0f}" for row in found]
            rows.append([name, count, *rates])
    return markdown(rows)


def without_each(tables: Tables, turn: str, model: str, baseline: str) -> str:
    """Return what remains of a model's gain when the questions of one principle are left out."""
    from sami_pipeline.evaluation.statistics import compliance_difference
    from sami_pipeline.result_tables.steerability import steerability

    checked, answers, principles = (tables[name] for name in ("checked", "answers", "principles"))
    checked, answers = (
        table[table["model"].isin([model, baseline])] for table in (checked, answers)
    )
    rows = [
        ["left out", "principles, points", "opposites, points",
         "steerability of principles, points", "of opposites, points"],
    ]  # fmt: skip
    for principle in checked["principle"].unique():
        asked = answers["stances"].map(
            lambda stances, left_out=principle: left_out in dict(json.loads(stances))
        )
        gained = compliance_difference(checked[checked["principle"] != principle], baseline)
        steered_more = steerability(answers[~asked], principles, baseline)
        rows.append(
            [
                principle.replace("_", " "),
                *by_stance(gained, points, "difference", model=model, turn=turn),
                *steered(steered_more, points, model=model, baseline=baseline),
            ]
        )
    return markdown(rows)


def seeds(tables: Tables) -> str:
    """Return what each training seed shows against the model that training starts from."""
    table = tables["by_seed"]
    table = table[table["measure"].isin(["compliance_difference", "steerability_difference"])]
    rows = [["measure", "stance", "model", "against", "each seed, exact p", "mean", "spread"]]
    for key, part in table.groupby(["measure", "stance", "model", "opponent"], sort=False):
        if len(part) < 2:
            continue
        each = ", ".join(
            f"{100 * row['value']:+.1f} (p = {row['p_value']:.1g})"
            for _, row in part.sort_values("seed").iterrows()
        )
        mean, spread = (100 * part[name].iloc[0] for name in ("mean", "spread"))
        names = [NAMES.get(name, name) for name in key]
        rows.append([*names, each, f"{mean:+.1f}", f"{spread:.1f}"])
    return markdown(rows)


def controls(tables: Tables) -> str:
    """Return what texts that answer nothing win, and answers to other questions."""
    table = tables["controls"]
    others = table["control"] == "other_questions"
    table = table[table["control"].str.startswith("constant_text") | others]
    rows = [["control", "constitution", "against", "win rate"]]
    rows += [
        [row["control"].replace("_", " ") + ("" if row["model"] == "constant" else
            f" answered by {row['model']}"), row["constitution"], row["opponent"],
         percent(row, "value")]
        for _, row in table.iterrows()
    ]  # fmt: skip
    return markdown(rows)


def side_by_side(tables: Tables, models: list[str]) -> str:
    """Return the answers of two models to every fourth question, with what they were asked."""
    answers = tables["answers"]
    parts = []
    for question, own in chosen(answers, "desired"):
        parts.append(f"### Question {question}\n\n{quoted(request(own.loc[models[0]]))}")
        for model in models:
            row = own.loc[model]
            end = ", cut off" if row["finish_reason"] == "length" else ""
            parts.append(f"**{model}**{end}:\n\n{quoted(row['answer'])}")
    return "\n\n".join(parts) + "\n"


def chosen(
    answers: pd.DataFrame, constitution: str, every: int = EVERY
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield one of every so many questions, and the models' first answers to it, by model."""
    asked = answers[(answers["constitution"] == constitution) & (answers["turn"] == 1)]
    for question in sorted(asked["question_id"].unique(), key=int)[::every]:
        own = asked[asked["question_id"] == question]
        yield question, own.drop_duplicates("model").set_index("model")


def request(answer: pd.Series) -> str:
    """Return the end of what a model was asked: the question and the rules."""
    prompt = json.loads(answer["prompt"])
    text = prompt.get("text") or prompt["messages"][-1]["content"]
    return text[-900:].strip()


def quoted(text: str) -> str:
    """Return text as a block that Markdown leaves as it is."""
    fence = "~~~~"
    return f"{fence}text\n{text.strip() or '(nothing)'}\n{fence}"


def page(run: str, seeds_run: str | None = None) -> str:
    """Return the part of docs/results.md that a run's tables make, and those of one with seeds."""
    tables = Tables(run)
    turn = shown_turn(tables)
    found = set(tables["answers"]["model"])
    models = [name for name in ("sft", "sft_sami") if name in found]
    compared = ("sft_sami", "sft_dpo")
    parts = [
        f"{made(run)} Percent with 95 % intervals over the questions; first turn; asked in words "
        "that were not trained on.",
        "## What each model follows\n\n" + followed(tables, turn),
        "## Against the model that training starts from\n\nPaired over the questions; p-values are "
        "exact and corrected for the models compared (Holm).\n\n"
        + differences(tables, turn)
        + ("\n" + between(tables, turn, *compared) if found.issuperset(compared) else ""),
        *([pooled(seeds_run)] if seeds_run else []),
        "## By principle\n\nPercent of answers that follow it where it is asked for.\n\n"
        + by_principle(tables, turn, list(tables["compliance"]["model"].unique())),
        *(
            [
                f"### Without each principle\n\n{compared[0]} against {models[0]}, when the "
                "questions that ask for one principle are left out: no single principle makes the "
                "difference if all rows say the same. Not corrected.\n\n"
                + without_each(tables, turn, compared[0], models[0])
            ]
            if len(models) == 2
            else []
        ),
        "## What texts win that answer nothing\n\n`other questions`: each answer "
        "is one to another question of the category, asked for the same. Where it wins as often as "
        "the model's own answers, form alone decides.\n\n" + controls(tables),
    ]
    if len(models) == 2:
        parts.append(
            f"## Answers side by side\n\nEvery {EVERY}th question, desired constitution, "
            "whatever the models say.\n\n" + side_by_side(tables, models)
        )
    return "\n\n".join(part.rstrip() for part in parts)


def over_questions(tables: Tables, baseline: str) -> str:
    """Return what these trainings gain together, were they the only ones: tests over questions."""
    from sami_pipeline.evaluation.intervals import sign_flip_p
    from sami_pipeline.result_tables.steerability import paired_statements

    pairs = paired_statements(tables["answers"], tables["principles"])
    gains = dict(list(pairs.groupby("model", sort=False)))
    rows = [["against", "steerability of principles, points", "of opposites, points"]]
    for model in gains:
        if pairs.loc[pairs["model"] == model, "seed"].nunique() < 2 or model == baseline:
            continue
        both = gains[model].merge(
            gains[baseline], on=["question_id", "principle", "stance", "seed"],
            suffixes=("", "_other"), validate="1:1",
        )  # fmt: skip
        cells = [f"{model} against {baseline}"]
        for _, stance in STANCES:
            cell = both[both["stance"] == stance]
            gained = cell["gain"] - cell["gain_other"]
            exact = sign_flip_p(gained, cell["question_id"])
            cells.append(f"{100 * gained.mean():+.1f}, p = {exact:.2g}")
        rows.append(cells)
    return markdown(rows)


def shown_turn(tables: Tables) -> str:
    """Return the first turn, or both where a run has no first one by itself."""
    return "1" if "1" in tables["compliance"]["turn"].unique() else "both"


def pooled(run: str) -> str:
    """Return what several trainings of each model show together, and each of them."""
    tables = Tables(run)
    turn = shown_turn(tables)
    parts = [
        f"## Several trainings of each model\n\n{made(run)} Every model was trained with each "
        "training seed, on the same responses. Intervals and p-values are over questions and seeds "
        "together, as wide as so few seeds ask for; p-values are corrected for the models compared "
        "(Holm).",
        followed(tables, turn),
        differences(tables, turn),
        "Each training by itself, in points; exact paired tests over the questions, not corrected:",
        seeds(tables),
        "These trainings together, as if there were no others: exact paired tests over the "
        "questions, not corrected. They say whether these models differ, not whether the next "
        "training will:",
        over_questions(tables, "sft"),
    ]
    return "\n\n".join(part.rstrip() for part in parts)


SOLVED = (
    ("greedy", 1, "one greedy attempt"), ("pass_at_k", 1, "one sample (pass@1)"),
    ("pass_at_k", None, "any of {k} (pass@{k})"), ("maj_at_k", None, "vote of {k} (maj@{k})"),
)  # fmt: skip


def math_page(run: str) -> str:
    """Return the part of docs/results.md on math: what is solved, and by how much more."""
    from sami_pipeline.evaluation.math_accuracy import accuracy_difference

    tables = Tables(run, "math")
    solved, attempts = tables["accuracy"], tables["attempts"]
    most = int(solved["k"].max())
    models = list(solved["model"].unique())
    measures = [(name, k or most, title.format(k=most)) for name, k, title in SOLVED]
    rows = [["model", *(title for *_, title in measures), "tokens an attempt"]]
    for model in models:
        cells = [percent_exactly(one(solved, model=model, metric=name, k=k), "value")
                 for name, k, _ in measures]  # fmt: skip
        tokens = one(solved, model=model, metric="mean_tokens")
        rows.append([model, *cells, "" if tokens is None else f"{tokens['value']:.0f}"])
    compared = [["difference, points", *(title for *_, title in measures)]]
    for baseline in ("base", "sft"):
        table = accuracy_difference(attempts, baseline, extraction="answer", ks=[1, most])
        for model in models:
            if model == baseline or (baseline == "sft" and not model.startswith("sft_")):
                continue
            cells = []
            for name, k, _ in measures:
                row = one(table, model=model, metric=name, k=k)
                cells.append("" if row is None else points(row, "difference"))
            compared.append([f"{model} against {baseline}", *cells])
    families = attempts.drop_duplicates("problem_id")["problem_id"].str.rpartition("-test-")[0]
    counts = ", ".join(f"{count} of {name}" for name, count in families.value_counts().items())
    return (
        f"{made(run, 'math')} {len(families)} test problems ({counts}); percent solved with "
        "95 % intervals over problems.\n\n"
        + markdown(rows)
        + "\nPaired over the problems; exact p-values, corrected for the models that are compared "
        "with one (Holm):\n\n" + markdown(compared)
    ).rstrip()


def percent_exactly(row: pd.Series | None, value: str) -> str:
    """Return a share and its interval, in percent with one decimal."""
    if row is None:
        return ""
    low, high = (100 * row[name] for name in ("ci_low", "ci_high"))
    return f"{100 * row[value]:.1f} [{low:.1f}, {high:.1f}]"


def made(run: str, experiment: str = "mt_bench") -> str:
    """Return when, on what and how long a run worked."""
    path = PROJECT / "data" / "08_reporting" / run / experiment / "run_record.json"
    attempts = [node["attempts"][-1] for node in json.loads(path.read_text())["nodes"]]
    last = max(attempts, key=lambda attempt: attempt["started"])
    minutes = sum(attempt["seconds"] for attempt in attempts) / 60
    where = last["environment"]
    return (
        f"Run `{run}`, {last['started'][:10]}, {where['cores']} cores of "
        f"{where['processor']}, {minutes:.0f} minutes in its nodes."
    )


def main() -> None:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="default")
    parser.add_argument("--seeds-run", help="name of a run with several training seeds")
    parser.add_argument("--math", action="store_true", help="write the part on math")
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    if arguments.math:
        begin, text = MATH_BEGIN, math_page(arguments.run)
    else:
        begin, text = BEGIN, page(arguments.run, arguments.seeds_run)
    if arguments.no_write:
        print(text)
        return
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    print(f"Written to {PAGE.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
