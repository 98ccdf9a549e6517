"""What the models wrote, for the browser of answers: plain data, one entry a question.

All experiments give the same shape, so that one page shows both::

    {"note", "total", "models": [...], "categories": [...], "judges": [...],
     "matches": [[model, opponent], ...], "pair": index of the match that is shown first,
     "constitutions": [...], "turns": [...], "principles": [...], "faults": [...],
     "examples": [{"why", "question", "setting"}, ...], "rule",
     "questions": [{"id", "category", "asked": [...], "settings": [
        {"title", "turn", "under", "principles", "asked", "constitution", "reference", "answers": [
            {"model", "texts": [{"title", "blocks", "facts", "right"}], "faults": [...],
             "statements": [...], "judgements": [...]}],
         "verdicts": [{"judge", "model", "opponent", "outcome", "margin", "detail",
                       "judgements": [...]}]}]}]}

A *setting* is one thing that every model was asked: a turn of a question under a constitution, or a
problem. A *margin* is by how much a match's first model is ahead: statements followed, points of a
judge's rating, or 1, 0 and -1 where there is only a winner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sami_pipeline.evaluation.math_accuracy import GREEDY
from sami_pipeline.evaluation.seeds import labelled
from sami_pipeline.evaluation.statistics import in_order
from sami_pipeline.figures import label
from sami_pipeline.principles.constitutions import statements_in
from sami_pipeline.reporting.blocks import blocks
from sami_pipeline.reporting.headlines import sami_first

Tables = Mapping[str, pd.DataFrame]
Json = dict[str, Any]
# The words of each (principle, stance), by question and constitution.
Words = Mapping[tuple[str, str], Mapping[tuple[str, str], str]]

# How a winner is written, from the model's side.
_OUTCOMES = {"model": "win", "opponent": "loss", "tie": "tie", "invalid": "invalid"}
_MARGINS = {"model": 1.0, "opponent": -1.0}
# Before what a check found in a text that follows nothing.
_REPEATS = "mostly repeats itself, which follows nothing; "
_CUT_OFF, _REPEATED = "is cut off", "repeats itself"
_FINISHED = {
    "length": "cut off at the token limit",
    "prompt_too_long": "the prompt was too long",
    "failed": "no answer came",
}
_CONSTITUTIONS = {
    "desired": "under the desired constitution",
    "contrasting": "under the contrasting constitution",
    "desired_trained_wording": "under the desired constitution in its training words",
    "none": "without a constitution",
}
# What a judge was shown, and in which order.
_ORDERS = {
    "model_first": "with {0.model} as A and {0.opponent} as B",
    "opponent_first": "with {0.opponent} as A and {0.model} as B",
    "single": "rating {0.model} alone",
}
_SETTING = ["question_id", "turn", "constitution"]


def judged_answers(tables: Tables, baseline: str, questions_shown: int | None) -> Json:
    """Return questions with every model's answers, verdicts and what the judges said.

    Args:
        tables: ``answers, verdicts, checked, questions, question_constitutions, principles`` and,
            where language models judge, ``judgements``; see ``schemas``.
        baseline: not needed here, the verdicts name who is compared.
        questions_shown: how many of each category; None takes all.
    """
    # Every replicate of a model that was trained with several seeds is shown by itself.
    tables = {name: labelled(table, ", seed ") for name, table in tables.items()}
    answers, verdicts = tables["answers"], tables["verdicts"]
    asked = tables["questions"][tables["questions"]["question_id"].isin(answers["question_id"])]
    first = asked[asked["turn"] == 1]
    kept = first if questions_shown is None else first.groupby("category").head(questions_shown)

    def shown(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["question_id"].isin(kept["question_id"])]

    texts = shown(asked).set_index(["question_id", "turn"])[["question", "reference"]]
    constitutions = tables["question_constitutions"]
    constitutions = constitutions[constitutions["query_id"].isin(kept["question_id"])]
    wanted = constitutions.set_index(["query_id", "constitution"])["text"]
    statements = _statements(shown(tables["checked"]), _words(constitutions, tables["principles"]))
    judgements = _judgements(shown(tables["judgements"]) if "judgements" in tables else None)
    verdicts_of = dict(list(shown(verdicts).groupby(_SETTING, sort=False)))
    settings: dict[str, list[Json]] = {}
    order = {name: place for place, name in enumerate(_CONSTITUTIONS)}
    by_setting = shown(answers).groupby(_SETTING, sort=False)
    for key, rows in sorted(by_setting, key=lambda group: (group[0][1], order[group[0][2]])):
        question, turn, constitution = key
        given = _rows_of(verdicts_of, key)
        said = judgements.get(key, {})
        settings.setdefault(question, []).append(
            {
                "title": f"Turn {turn}, {_CONSTITUTIONS[constitution]}",
                "turn": str(turn),
                "under": constitution,
                "principles": [
                    label(name) for name, _ in json.loads(rows.iloc[0]["stances"] or "[]")
                ],
                "asked": texts.loc[(question, turn), "question"],
                "constitution": wanted.get((question, constitution), ""),
                "reference": texts.loc[(question, turn), "reference"],
                "answers": [
                    {
                        "model": row.model,
                        "texts": [_text(row.answer, row)],
                        "faults": _faults(row),
                        "statements": statements.get((row.model, question, turn, constitution), []),
                        "judgements": said.get((row.model, ""), []),
                    }
                    for row in rows.itertuples(index=False)
                ],
                "verdicts": [
                    _verdict(row, said.get((row.model, row.opponent), []))
                    for row in given.itertuples(index=False)
                ],
            }
        )
    questions = [
        {
            "id": row.question_id,
            "category": row.category,
            "asked": row.question,
            "settings": settings[row.question_id],
        }
        for row in kept.itertuples(index=False)
    ]
    return {
        "note": "Every model's answer to a question, side by side, with the verdicts and what they "
        "rest on. An outcome is that of the pair's first model.",
        **_common(answers, verdicts, questions, baseline),
        "categories": in_order(kept["category"]),
        "total": int(first["question_id"].nunique()),
        "questions": questions,
    }


def published_answers(tables: Tables, questions_shown: int | None) -> Json:
    """Return questions with the answers and verdicts that were published.

    Args:
        tables: ``answers, verdicts``; see ``schemas.PublishedAnswers``.
        questions_shown: how many of each category; None takes all.
    """
    answers, verdicts = tables["answers"], tables["verdicts"]
    first = answers.drop_duplicates("question_id")
    kept = first if questions_shown is None else first.groupby("category").head(questions_shown)
    answers_to = dict(list(answers.groupby("question_id", sort=False)))
    verdicts_of = dict(list(verdicts.groupby("question_id", sort=False)))
    questions = [
        {
            "id": row.question_id,
            "category": row.category,
            "asked": row.question,
            "settings": [
                {
                    "title": f"Turn {row.turn}, {_CONSTITUTIONS[row.constitution]}",
                    "turn": str(row.turn),
                    "under": row.constitution,
                    "principles": [],
                    "asked": row.question,
                    "constitution": row.text,
                    "reference": "",
                    "answers": [
                        {
                            "model": given.model,
                            "texts": [_text(given.answer, given)],
                            "faults": _faults(given),
                            "statements": [],
                            "judgements": [],
                        }
                        for given in answers_to[row.question_id].itertuples(index=False)
                    ],
                    "verdicts": [
                        _verdict(verdict, [])
                        for verdict in _rows_of(verdicts_of, row.question_id).itertuples()
                    ],
                }
            ],
        }
        for row in kept.itertuples(index=False)
    ]
    return {
        "note": "The published answers to a question, side by side, with the published verdicts. "
        "An outcome is that of the pair's first model.",
        **_common(answers, verdicts, questions, ""),
        "categories": in_order(kept["category"]),
        "total": len(first),
        "questions": questions,
    }


def math_answers(tables: Tables, baseline: str, questions_shown: int | None) -> Json:
    """Return the test problems with every attempt, what was read from it, and whether it is right.

    A model wins against the baseline at a problem where its greedy attempt alone is right.

    Args:
        tables: ``attempts, problems``; see ``schemas``.
        baseline: the model that the others are compared with.
        questions_shown: how many problems of each family; None takes all.
    """
    attempts, problems = labelled(tables["attempts"], ", seed "), tables["problems"]
    test = problems[problems["problem_id"].isin(attempts["problem_id"])]
    test = test.assign(category=test["problem_id"].str.rsplit("-", n=2).str[0])
    kept = test if questions_shown is None else test.groupby("category").head(questions_shown)
    attempts = attempts[attempts["problem_id"].isin(kept["problem_id"])]
    verdicts = _greedy_verdicts(attempts, baseline)
    verdicts_of = dict(list(verdicts.groupby("problem_id", sort=False)))
    attempts_at = dict(list(attempts.groupby("problem_id", sort=False)))
    questions = [
        {
            "id": row.problem_id,
            "category": row.category,
            "asked": row.question,
            "settings": [
                {
                    "title": f"Correct answer: {row.answer}",
                    "turn": "1",
                    "under": "",
                    "principles": [],
                    "asked": row.question,
                    "constitution": "",
                    "reference": row.solution,
                    "answers": _attempts(attempts_at[row.problem_id]),
                    "verdicts": [
                        _verdict(verdict, [])
                        for verdict in _rows_of(verdicts_of, row.problem_id).itertuples()
                    ],
                }
            ],
        }
        for row in kept.itertuples(index=False)
    ]
    return {
        "note": "Every model's attempts at a problem, side by side, with the answer that was read "
        "from each. In a pair, a model wins where its greedy attempt is right and its opponent's "
        "is not; where both are right or both are wrong there is a tie.",
        **_common(attempts, verdicts, questions, baseline),
        "categories": list(dict.fromkeys(test["category"])),
        "total": len(test),
        "questions": questions,
    }


def _common(
    answers: pd.DataFrame, verdicts: pd.DataFrame, questions: list[Json], baseline: str
) -> Json:
    """Return what can be chosen among the questions, and the examples."""
    matches = verdicts[["model", "opponent"]].drop_duplicates().to_numpy().tolist()
    models = list(dict.fromkeys(answers["model"]))
    order = {model: place for place, model in enumerate(sami_first(models))}
    # SAMI's model against the baseline is looked at first.
    pairs = sorted(matches, key=lambda pair: (order.get(pair[0], 99), pair[1] != baseline))
    pair = matches.index(pairs[0]) if pairs else 0
    settings = [setting for question in questions for setting in question["settings"]]
    return {
        "models": models,
        "matches": matches,
        "pair": pair,
        "judges": list(dict.fromkeys(verdicts["judge"])),
        "constitutions": [
            name for name in _CONSTITUTIONS if name in {setting["under"] for setting in settings}
        ],
        "turns": sorted({setting["turn"] for setting in settings}),
        "principles": sorted({name for setting in settings for name in setting["principles"]}),
        "faults": [_CUT_OFF, _REPEATED],
        **_examples(questions, matches[pair] if matches else None),
    }


def _examples(questions: list[Json], pair: list[str] | None) -> Json:
    """Return three settings chosen by a rule: the margin at which a pair's first model is ahead."""
    margins = []
    for question in questions:
        of_pair = (
            verdict
            for verdict in question["settings"][0]["verdicts"]
            if pair == [verdict["model"], verdict["opponent"]]
        )
        verdict = next(of_pair, None)  # the first judge's
        if verdict is not None and verdict["outcome"] != "invalid":
            margins.append((verdict["margin"], question["id"], 0))
    chosen: dict[tuple[str, int], str] = {}
    if margins:
        # Of equal margins the question that stands first; sorting is stable.
        by_margin = sorted(margins, key=lambda each: -each[0])
        middle = by_margin[len(by_margin) // 2]
        least = next(each for each in by_margin if each[0] == by_margin[-1][0])
        for each, why in (
            (by_margin[0], f"Where {pair[0]} is furthest ahead of {pair[1]}"),
            (middle, "In the middle"),
            (least, f"Where it is furthest behind {pair[1]}"),
        ):
            chosen.setdefault(each[1:], why)
    return {
        "rule": "" if pair is None else (
            f"Of all questions, sorted by how far {pair[0]} is ahead of {pair[1]} at what every "
            "question was asked first: the first, the middle one and the last; of equal ones that "
            "which was asked first."
        ),
        "examples": [
            {"why": why, "question": question, "setting": setting}
            for (question, setting), why in chosen.items()
        ],
    }  # fmt: skip


def _text(text: str, row: Any) -> Json:
    return {"title": "", "blocks": blocks(text), "facts": _facts(row)}


def _faults(row: Any) -> list[str]:
    faults = [_CUT_OFF] if row.finish_reason == "length" else []
    return [*faults, _REPEATED] if getattr(row, "degenerate", False) else faults


def _rows_of(groups: Mapping[Any, pd.DataFrame], key: Any) -> pd.DataFrame:
    return groups.get(key, pd.DataFrame())


def _facts(row: Any) -> list[str]:
    facts = [f"{row.completion_tokens} tokens"]
    if row.finish_reason in _FINISHED:
        facts.append(_FINISHED[row.finish_reason])
    if getattr(row, "degenerate", False):
        facts.append("mostly repeats itself")
    return facts


def _verdict(row: Any, judgements: list[Json]) -> Json:
    scores = (getattr(row, "model_score", None), getattr(row, "opponent_score", None))
    detail = "" if any(pd.isna(score) for score in scores) else "{:g} to {:g}".format(*scores)
    return {
        "judge": row.judge,
        "model": row.model,
        "opponent": row.opponent,
        "outcome": _OUTCOMES[row.winner],
        "margin": float(scores[0] - scores[1]) if detail else _MARGINS.get(row.winner, 0.0),
        "detail": detail,
        "judgements": [said for said in judgements if said["judge"] == row.judge],
    }


def _words(constitutions: pd.DataFrame, principles: pd.DataFrame) -> Words:
    """Return the wording of every statement that was drawn for a question."""
    by_category = dict(list(principles.groupby("category")))
    return {
        (row.query_id, row.constitution): statements_in(
            row.text, list(map(tuple, json.loads(row.stances))), by_category[row.category]
        )
        for row in constitutions.itertuples(index=False)
    }


def _statements(checked: pd.DataFrame, words: Words) -> dict[tuple, list[Json]]:
    """Return the statements of each answer's constitution, and which it follows."""
    found: dict[tuple, list[Json]] = {}
    for row in checked.itertuples(index=False):
        found.setdefault((row.model, row.question_id, row.turn, row.constitution), []).append(
            {
                "text": words[row.question_id, row.constitution][row.principle, row.stance],
                "followed": bool(row.passed and not row.degenerate),
                "evidence": _REPEATS * bool(row.degenerate) + row.evidence,
            }
        )
    return found


def _judgements(table: pd.DataFrame | None) -> dict[tuple, dict[tuple[str, str], list[Json]]]:
    """Return what language models said as judges, by setting and by (model, opponent or "")."""
    found: dict[tuple, dict[tuple[str, str], list[Json]]] = {}
    if table is None:
        return found
    repeated = (table["sample"] > 0).any()
    for row, sample in zip(table.itertuples(index=False), table["sample"], strict=True):
        setting = found.setdefault((row.question_id, row.turn, row.constitution), {})
        shown = _ORDERS[row.order].format(row) + (f", time {sample + 1}" if repeated else "")
        opponent = row.opponent if isinstance(row.opponent, str) else ""
        setting.setdefault((row.model, opponent), []).append(
            {
                "judge": row.judge,
                "title": f"{row.judge_model}, {shown}: {row.verdict}",
                "text": row.text,
            }
        )
    return found


def _greedy_verdicts(attempts: pd.DataFrame, baseline: str) -> pd.DataFrame:
    greedy = attempts[attempts["attempt"] == GREEDY]
    right = greedy.pivot(index="problem_id", columns="model", values="correct")
    names = {1: "model", 0: "tie", -1: "opponent"}
    return pd.DataFrame(
        [
            (
                problem,
                model,
                baseline,
                names[int(row[model]) - int(row[baseline])],
                "greedy attempt",
            )
            for problem, row in right.iterrows()
            for model in dict.fromkeys(greedy["model"])
            if model != baseline
        ],
        columns=["problem_id", "model", "opponent", "winner", "judge"],
    )


def _attempts(rows: pd.DataFrame) -> list[Json]:
    answers = []
    for model, attempts in rows.groupby("model", sort=False):
        texts = [
            {
                "title": "Greedy attempt" if row.attempt == GREEDY else f"Attempt {row.attempt}",
                "blocks": blocks(row.text),
                "right": bool(row.correct),
                "facts": [
                    f"answer {row.answer} ({row.reading})" if row.answer else "no answer found",
                    f"strictly read {row.strict}" if row.strict else "strictly read, none",
                    *_facts(row),
                ],
            }
            for row in attempts.sort_values("attempt").itertuples(index=False)
        ]
        cut = (attempts["finish_reason"] == "length").any()
        answers.append(
            {
                "model": model,
                "texts": texts,
                "faults": [_CUT_OFF] if cut else [],
                "statements": [],
                "judgements": [],
            }
        )
    return answers
