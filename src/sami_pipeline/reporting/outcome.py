"""What came out, in words: one paragraph from the tables of results.

The rules, so that no sentence is contradicted by taking a table apart:

* The headline is the desired constitution at the first turn; both turns follow it. Nothing is said
  of two constitutions, or of a principle and its antithesis, together.
* A difference is named only where its 95 % interval leaves parity out, its exact paired test
  corrected for the number of comparisons has p <= 0.05 (`decided`), and at least six questions (or
  problems) were asked; a category is named by the same rule.
* A win is not claimed where there is a simpler reason for it (`doubts`): with length held equal it
  is gone, the model hardly ever gives different answers, or a constant text wins as often.
* What limits all of this is said at the end (`caveats`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pandas as pd

from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.intervals import FEWEST_CLUSTERS
from sami_pipeline.evaluation.statistics import (
    ALL_PRINCIPLES,
    BOTH_TURNS,
    DESIRED,
    FIRST_TURN,
    OVERALL,
    OVERALL_PAPER,
)
from sami_pipeline.figures import label
from sami_pipeline.principles.constitutions import TRAINED_WORDING
from sami_pipeline.reporting.contents import CONTENTS
from sami_pipeline.result_tables.shown import Estimate, Table, decided
from sami_pipeline.training.responses import shortage

NO_DIFFERENCE = "no difference can be seen"
ESTIMATES = {
    part.name: part.estimate
    for part in CONTENTS
    if isinstance(part, Table) and part.estimate and part.whole
}
# That of the paper on SAMI; the table has the other too.
_LENGTH_METHOD = "stratified"
_TOO_LITTLE = "too little was asked to tell {model} and {other} apart"
_WINS = {
    "above": "{model} beats {other}",
    "below": "{model} loses to {other}",
    "": f"between {{model}} and {{other}} {NO_DIFFERENCE}",
}
_DOUBTED = "{model} is preferred to {other}"
_GAINS = {
    "above": "better than {other}: ",
    "below": "worse than {other}: ",
    "": f"{NO_DIFFERENCE} from {{other}} for ",
}
_STANCES = {"principle": "principles", "antithesis": "antitheses"}
# Under these, both turns follow the first, and categories are looked at.
_BOTH_TURNS = (DESIRED, "none")
# Below it a model says much the same whatever it is asked.
_FEW_DISTINCT = 0.5
# Of the answers, from which on it is said that they are cut off or repeat themselves; of the
# comparisons, that they tie.
_MANY = 0.1


def outcome(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return what an experiment's tables of results say, as one paragraph.

    Args:
        tables: by name; those that are missing or empty are passed over.

    Returns:
        Plain text. It says so if there are no results.
    """
    present = {name: table for name, table in tables.items() if not table.empty}
    sentences = [
        sentence
        for name, describe in _SENTENCES.items()
        if name in present
        for sentence in describe(present)
    ]
    if not sentences:
        return "There are no results: the tables of results are empty."
    over, test = "problems" if "accuracy" in present else "questions", "an exact paired test"
    asked = over
    if (seeds := seeds_of(present)) > 1:
        over += f" and {seeds} training seeds"
        test = "a test over both"
    closing = (
        f"In brackets are 95 % intervals over {over}. A difference is named only where its "
        f"interval leaves out parity and {test}, corrected for the number of "
        f"comparisons, has p of at most 0.05; “{NO_DIFFERENCE}” says that these {asked} do not "
        "show one, not that there is none."
    )
    if limits := caveats(present):
        sentences.append(f"To be kept in mind: {_listed(limits)}.")
    return " ".join([*sentences, closing])


def seeds_of(tables: Mapping[str, pd.DataFrame]) -> int:
    """Return how many trainings of each model are taken together."""
    return max((int(t["seeds"].max()) for t in tables.values() if "seeds" in t), default=1)


def _win_rates(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    table, estimate = tables["win_rates"], ESTIMATES["win_rates"]
    for judge, judged in table.groupby("judge", sort=False):
        for constitution, rows in judged.groupby("constitution", sort=False):
            yield _matches(tables, rows[rows["turn"] == FIRST_TURN], judge, constitution)
            if constitution in _BOTH_TURNS and (rows["turn"] == "2").any():
                both = rows[(rows["turn"] == BOTH_TURNS) & (rows["category"] == OVERALL)]
                found = _wins(tables, both)
                yield f"On both turns: {_listed(found)}."
            if constitution in _BOTH_TURNS:
                yield from _categories(rows[rows["turn"] == FIRST_TURN], estimate)
        asked = judged[(judged["category"] == OVERALL) & (judged["turn"] == BOTH_TURNS)]
        if invalid := int(asked["invalid"].sum()):
            given = invalid + int(asked["rows"].sum())
            yield f"Left out are {invalid} of {given} verdicts, which could not be read."


def _matches(
    tables: Mapping[str, pd.DataFrame], rows: pd.DataFrame, judge: str, constitution: str
) -> str:
    overall = rows[rows["category"] == OVERALL]
    found = _wins(tables, overall)
    return (
        f"{_asked_under(constitution)}, at the first turn, judged by the {judge} judge over all "
        f"categories, a tie counting half a win: {_listed(found)}."
    )


def _asked_under(constitution: str) -> str:
    if constitution == "none":
        return "Asked without a constitution"
    if constitution == TRAINED_WORDING:
        return "Asked under the desired constitution in its training words"
    return f"Asked under the {constitution} constitution"


def _wins(tables: Mapping[str, pd.DataFrame], overall: pd.DataFrame) -> list[str]:
    """Return what is said of each match; a win only where nothing simpler explains it."""
    estimate, found = ESTIMATES["win_rates"], []
    for row in overall.to_dict("records"):
        if not row["n"]:
            found.append(f"no verdict on {row['model']} and {row['opponent']} could be read")
            continue
        words, details = _verdict(row, estimate, _WINS), _details(row, estimate)
        ahead = decided(row, estimate)
        winner, loser = row["model"], row["opponent"]
        if ahead == "below":
            winner, loser = loser, winner
        if ahead and (reasons := list(doubts(tables, row, winner, loser))):
            words = _DOUBTED.format(model=winner, other=loser)
            details += f", which is no win: {', '.join(reasons)}"
        found.append(f"{words} {details}")
    return found


def _details(row: Mapping, estimate: Estimate) -> str:
    p_value = row.get("p_holm")
    tested = "" if p_value is None or pd.isna(p_value) else f", {written_p(p_value)}"
    return f"({_written(row, estimate, ' %')} of {questions(row['n'])}{tested})"


def questions(number: int) -> str:
    """Return so many questions in words."""
    return f"{number} question{'s' * (number != 1)}"


def written_p(p_value: float) -> str:
    """Return how a p-value is written."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def doubts(
    tables: Mapping[str, pd.DataFrame], row: Mapping, winner: str, loser: str
) -> Iterator[str]:
    """Yield the simpler reasons for which one side may be preferred."""
    if "length_controlled" in tables:
        table, estimate = tables["length_controlled"], ESTIMATES["length_controlled"]
        same = table["method"] == _LENGTH_METHOD
        for column in ("judge", "constitution", "turn", "model", "opponent"):
            same &= table[column] == row[column]
        for controlled in table[same].to_dict("records"):
            if decided(controlled, estimate) != decided(row, ESTIMATES["win_rates"]):
                if pd.isna(controlled[estimate.value]):
                    yield "one of the two always writes the longer answer"
                    continue
                rate = _written(controlled, estimate, " %")
                yield f"with length held equal {NO_DIFFERENCE} ({rate})"
    if "controls" in tables:
        controls = tables["controls"]
        controls = controls[controls["constitution"] == row["constitution"]]
        distinct = controls[
            (controls["control"] == "distinct_answers") & (controls["model"] == winner)
        ]
        if (distinct["value"] < _FEW_DISTINCT).any():
            share = 100 * distinct["value"].min()
            yield f"only {share:.0f} % of the answers of {winner} differ from each other"
        constant = controls[controls["control"].str.startswith("constant_text")]
        constant = constant[constant["opponent"] == loser]
        rate = row["adjusted_win_rate"] if winner == row["model"] else 1 - row["adjusted_win_rate"]
        if row["judge"] == CHECKLIST and (constant["value"] >= rate).any():
            yield f"a constant text wins against {loser} as often"


def _categories(rows: pd.DataFrame, estimate: Estimate) -> Iterator[str]:
    """Say in which categories each match has a winner."""
    single = rows[~rows["category"].isin([OVERALL, OVERALL_PAPER])]
    there = single["category"].nunique()
    if there < 2:
        return
    asked = single[[enough(row, estimate) for row in single.to_dict("records")]]
    categories = asked["category"].nunique()
    if not categories:
        yield "In no category by itself was enough asked to tell models apart."
        return
    found = []
    for (model, opponent), met in asked.groupby(["model", "opponent"], sort=False):
        for ahead, sides in (("above", (model, opponent)), ("below", (opponent, model))):
            named = [row["category"] for row in met.to_dict("records")
                     if decided(row, estimate) == ahead]  # fmt: skip
            if named:
                found.append(f"{' is preferred to '.join(sides)} in {', '.join(named)}")
    told = _listed(found) if found else "no difference can be seen in any"
    if categories < there:
        yield (
            f"Enough was asked in {categories} of {there} categories by themselves; of these, p "
            f"corrected for their number, {told}."
        )
    else:
        yield (
            f"Here, of the {categories} categories by themselves, p corrected for their number, "
            f"{told}."
        )


def _compliance_difference(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    table, estimate = tables["compliance_difference"], ESTIMATES["compliance_difference"]
    overall = table[(table["category"] == OVERALL) & (table["turn"] == FIRST_TURN)]
    for (constitution, stance), rows in overall.groupby(["constitution", "stance"], sort=False):
        yield (
            f"In following the {_STANCES[stance]} asked for by the {constitution} constitution at "
            f"the first turn: {_listed(_differences(rows, estimate))}."
        )


def _steerability(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    table, estimate = tables["steerability"], ESTIMATES["steerability"]
    overall = table[(table["category"] == OVERALL) & (table["principle"] == ALL_PRINCIPLES)]
    for stance, rows in overall.groupby("stance", sort=False):
        found = [
            f"{row['model']} {_written(row, estimate, ' points')}"
            for row in rows[rows["baseline"] == ""].to_dict("records")
        ]
        compared = _differences(rows[rows["baseline"] != ""], estimate)
        yield (
            f"Steerability, which is how much more often {_STANCES[stance]} are followed where "
            f"they are asked for than where their opposites are: {_listed([*found, *compared])}."
        )


def _wordings(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Say of each model what is followed in either wording, and whether the two differ."""
    table, estimate = tables["compliance_by_wording"], ESTIMATES["compliance_by_wording"]
    overall = table[(table["category"] == OVERALL) & (table["principle"] == ALL_PRINCIPLES)]
    found = []
    for model, rows in overall.groupby("model", sort=False):
        trained, unseen, change = rows.to_dict("records")
        apart = _written(change, estimate, " points")
        if not decided(change, replace(estimate, parity=0.0)):
            apart = f"{NO_DIFFERENCE}, {apart}"
        found.append(
            f"{model} {_written(trained, estimate, ' %')} in trained words, "
            f"{_written(unseen, estimate, ' %')} in unseen ones ({apart})"
        )
    yield (
        "Of the principles that have another wording than that of training, at the first turn and "
        f"on the same questions, are followed by {_listed(found)}."
    )


def _degeneration(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    rows = tables["degeneration"]
    rows = rows[(rows["category"] == OVERALL) & (rows["turn"] == BOTH_TURNS)]
    for constitution, asked in rows.groupby("constitution", sort=False):
        found = [
            f"{row['model']} {_written(row, ESTIMATES['degeneration'], ' %')}"
            for row in asked.to_dict("records")
        ]
        yield (
            f"{_asked_under(constitution)}, the share of answers that mostly repeat themselves: "
            f"{_listed(found)}."
        )
        if constitution == DESIRED:
            break


def _accuracy(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Say for one attempt and for all of them what is solved, and by how much more or less.

    Where there are differences, only the baseline's own accuracy is said besides.
    """
    accuracy, differences = tables["accuracy"], tables.get("accuracy_difference")
    samples = accuracy.loc[accuracy["metric"] == "pass_at_k", "k"]
    attempts = [("With one greedy attempt", "greedy", 1)]
    if len(samples):
        most = int(samples.max())
        attempts += [
            (f"With any of {most} sampled attempts", "pass_at_k", most),
            (f"By the most frequent answer of {most}", "maj_at_k", most),
        ]
    for phrase, metric, k in attempts:
        rows, found = _of(accuracy, metric, k), []
        if differences is not None:
            changes = _of(differences, metric, k)
            rows = rows[rows["model"].isin(changes["baseline"])]
            found = _differences(changes, ESTIMATES["accuracy_difference"])
        levels = [
            f"{row['model']} solves {_written(row, ESTIMATES['accuracy'], ' %')} of "
            f"{row['n']} problems"
            for row in rows.to_dict("records")
        ]
        if levels:
            yield f"{phrase}, {_listed([*levels, *found])}."


def _of(table: pd.DataFrame, metric: str, k: int) -> pd.DataFrame:
    return table[(table["metric"] == metric) & (table["k"] == k)]


def caveats(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return what limits these results, as far as it applies."""
    found = []
    if "degeneration" in tables:
        found += _spoilt(tables["degeneration"])
    if "controls" in tables:
        rows = tables["controls"]
        rows = rows[(rows["control"] == "repeats_first_answer") & (rows["constitution"] == DESIRED)]
        if (rows["value"] >= _MANY).any():
            shares = [
                f"{100 * row['value']:.0f} % of {row['model']}'s" for row in rows.to_dict("records")
            ]
            found.append(f"{', '.join(shares)} second answers repeat the first")
        rows = tables["controls"]
        rows = rows[(rows["control"] == "distinct_answers") & (rows["constitution"] == DESIRED)]
        for row in rows[rows["value"] < _FEW_DISTINCT].to_dict("records"):
            found.append(
                f"{row['model']} says much the same whatever it is asked "
                f"({100 * row['value']:.0f} % of its answers differ from each other)"
            )
    if "win_rates" in tables:
        table = tables["win_rates"]
        headline = table[(table["category"] == OVERALL) & (table["turn"] == FIRST_TURN)]
        for judge, rows in headline.groupby("judge", sort=False):
            rows = rows[rows["constitution"] == rows["constitution"].iloc[0]]
            rows = rows[rows["n"] > 0]
            if len(rows):
                ties = rows["ties"].sum() / rows["rows"].sum()
                if ties >= _MANY:
                    found.append(
                        f"{100 * ties:.0f} % of the {judge} judge's comparisons tie, which keeps "
                        "win rates near 50 %"
                    )
                found.append(_detectable(rows, judge))
        if (headline["judge"] == CHECKLIST).any():
            found.append(
                "the checklist judge sees form alone, neither truth nor relevance, and of a "
                "statement only what its check tests"
            )
    if "judge_quality" in tables:
        quality = tables["judge_quality"]
        flips = quality[(quality["metric"] == "flip_rate") & (quality["category"] == OVERALL)]
        for row in flips.to_dict("records"):
            if row["value"] >= _MANY:
                found.append(
                    f"{100 * row['value']:.0f} % of the {row['judge']} judge's verdicts under the "
                    f"{row['constitution']} constitution change with the order of the answers"
                )
        itself = quality[(quality["metric"] == "self_agreement") & (quality["category"] == OVERALL)]
        for row in itself.dropna(subset="value").to_dict("records"):
            shown = _written(row, ESTIMATES["judge_quality"], "")
            found.append(
                f"asked the same twice under the {row['constitution']} constitution, the "
                f"{row['judge']} judge gives the same verdict in a share of {shown}"
            )
    if "response_counts" in tables:
        counts = tables["response_counts"]
        found += [f"of the training queries, {words}" for words in shortage(counts)]
        lost = counts[counts["status"] != "usable"].groupby("status")["queries"].sum()
        if lost.sum():
            reasons = [
                f"{label(name)} {number}"
                for name, number in lost.sort_values(ascending=False).items()
                if number
            ]
            found.append(
                f"{lost.sum()} of {counts['queries'].sum()} training queries were not trained on, "
                f"since a response was not usable ({', '.join(reasons)})"
            )
    return found


def _spoilt(table: pd.DataFrame) -> Iterator[str]:
    """Say how many answers are cut off or repetition, under each constitution where many are."""
    rows = table[(table["category"] == OVERALL) & (table["turn"] == BOTH_TURNS)]
    rows = rows[rows["constitution"] != TRAINED_WORDING]  # the desired one in other words
    for estimate, words in (
        (Estimate("truncated_rate", "truncated_ci_low", "truncated_ci_high", digits=0),
         "cut off at the limit of tokens"),
        (Estimate("degeneration_rate", digits=0), "mostly repetition"),
    ):  # fmt: skip
        parts = []
        for constitution, asked in rows.groupby("constitution", sort=False):
            if (asked[estimate.value] >= _MANY).any():
                shares = [f"{row['model']} {_written(row, estimate, ' %')}" for row in
                          asked.to_dict("records")]  # fmt: skip
                under = _asked_under(constitution)
                parts.append(f"{under[0].lower()}{under[1:]}: {', '.join(shares)}")
        if parts:
            yield f"many answers are {words}; {'; '.join(parts)}"


def _detectable(rows: pd.DataFrame, judge: str) -> str:
    asked, rate = questions(int(rows["n"].min())), 0.5 + rows["detectable"].max()
    if rows["n"].min() < FEWEST_CLUSTERS:
        return f"with {asked} no win rate of the {judge} judge, however high, tells models apart"
    if rate > 1:
        return (
            f"with {asked} even a model that always wins would be found less often than in four of "
            f"five cases by the {judge} judge"
        )
    return (
        f"with {asked} a win rate of {100 * rate:.0f} % would be found in four of five cases by "
        f"the {judge} judge, a smaller one less often"
    )


_SENTENCES = {
    "win_rates": _win_rates,
    "compliance_difference": _compliance_difference,
    "steerability": _steerability,
    "compliance_by_wording": _wordings,
    "accuracy": _accuracy,
    "degeneration": _degeneration,
}


def _differences(rows: pd.DataFrame, estimate: Estimate) -> list[str]:
    """Return which models are better than their baseline, worse, and not told apart from it."""
    found: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        words = _verdict(row, estimate, _GAINS)
        models = found.setdefault(words, [])
        if enough(row, estimate):
            models.append(f"{row['model']} ({_written(row, estimate, ' points')})")
    return [words + ", ".join(models) for words, models in found.items()]


def enough(row: Mapping, estimate: Estimate) -> bool:
    """Return whether enough was asked for a row to say anything."""
    return pd.notna(row[estimate.low]) and row["n"] >= FEWEST_CLUSTERS


def _verdict(row: Mapping, estimate: Estimate, words: Mapping[str, str]) -> str:
    """Return the words for the side of parity that a row is on."""
    names = {"model": row["model"], "other": row.get("opponent", row.get("baseline"))}
    chosen = words[decided(row, estimate)] if enough(row, estimate) else _TOO_LITTLE
    return chosen.format(**names)


def _written(row: Mapping, estimate: Estimate, unit: str) -> str:
    cell = estimate.cell(row)
    return f"{cell.value}{unit} {cell.interval}".rstrip()


def _listed(parts: list[str]) -> str:
    return "; ".join(parts)
