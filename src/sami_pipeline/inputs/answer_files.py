"""Answers and verdicts from files: this project's own, FastChat's, and those of arXiv 2410.01704.

They let results of other code be judged and tabulated as our own are. Every reader returns the
columns that the statistics need and refuses a file that doesn't hold them, with its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sami_pipeline import files
from sami_pipeline.errors import InputError, one_line
from sami_pipeline.evaluation.mt_bench import answer_questions, asked_questions
from sami_pipeline.evaluation.statistics import OUTCOMES
from sami_pipeline.inputs import outside_files, text_files
from sami_pipeline.parameters import JudgedParameters, PublishedParameters
from sami_pipeline.principles.constitutions import desired_in_trained_wording
from sami_pipeline.principles.degeneration import is_degenerate

_WIN, _TIE, _LOSS, _INVALID = OUTCOMES
_ANSWERS = ("model", "question_id", "category", "turn", "constitution", "answer")
_ANSWER_FIELDS = (
    "question_id", "turn", "constitution", "stances", "answer", "finish_reason",
    "completion_tokens",
)  # fmt: skip
# What is no text.
_WHOLE = (int, np.integer), "a whole number"
_ANSWER_KINDS = {"turn": _WHOLE, "completion_tokens": _WHOLE}
_VERDICTS = (
    "judge", "model", "opponent", "question_id", "category", "turn", "constitution", "winner",
)  # fmt: skip
# The published judgements are on MT-Bench's first turn under the desired constitution.
_SETTING = {"turn": 1, "constitution": "desired"}
_FASTCHAT_WINNERS = {"model_1", "model_2", "tie"}


def collect_published(
    parameters: PublishedParameters, project_folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the published answers of all models, and the verdicts on them.

    Args:
        parameters: where they are.
        project_folder: what a relative folder is relative to.

    Returns:
        Answers as ``schemas.PublishedAnswers`` and verdicts as ``schemas.Verdicts``. The published
        verdicts hold the lengths in tokens. One answer that reaches the limit was cut off.

    Raises:
        InputError: no folder is named, a file is missing or there twice, or it can't be read.
    """
    if parameters.folder is None:
        raise InputError(
            "published.folder: is missing; clone github.com/SohamGovande/sami-extension and name "
            "the clone: --params published.folder=/path/to/clone"
        )
    folder = project_folder / files.from_home(parameters.folder)
    if not folder.is_dir():
        raise InputError(f"published.folder: {folder}: is no folder")
    answers = pd.concat(
        [
            read_published_answers(_found(folder, file), model)
            for model, file in parameters.answers.items()
        ],
        ignore_index=True,
    )
    verdicts = pd.concat(
        [
            read_published_verdicts(
                _found(folder, file), answers,
                model=model, opponent=parameters.baseline, judge=parameters.judge,
            )
            for model, file in parameters.verdicts.items()
        ],
        ignore_index=True,
    )  # fmt: skip
    tokens = {
        (row[side], row["question_id"]): row[f"{side}_tokens"]
        for row in verdicts.to_dict("records")
        for side in ("model", "opponent")
    }
    lengths = [
        tokens.get(key, 0) for key in zip(answers["model"], answers["question_id"], strict=True)
    ]
    answers = answers.assign(
        completion_tokens=lengths,
        finish_reason=[
            "length" if count >= parameters.max_new_tokens else "stop" for count in lengths
        ],
        degenerate=answers["answer"].map(is_degenerate).astype(bool),
    )
    verdicts = verdicts.drop(columns=["model_tokens", "opponent_tokens"])
    return answers, verdicts.assign(model_score=float("nan"), opponent_score=float("nan"))


def _found(folder: Path, name: str) -> Path:
    """Return the one file of a name in a folder or below."""
    found = [folder / name] if (folder / name).is_file() else sorted(folder.rglob(name))
    if len(found) != 1:
        what = "is not there" if not found else f"is there {len(found)} times"
        raise InputError(f"published.folder: {folder}: {name} {what}; name it with its folders")
    return found[0]


def read_published_answers(path: Path, model: str) -> pd.DataFrame:
    """Return a model's answers from a file of arXiv 2410.01704's repository.

    Args:
        path: JSON with ``constitution, question, category, response``, each by question number
            from 0, in the order of MT-Bench's questions 81 to 160.
        model: what it is called here.

    Returns:
        ``model, question_id, category, turn, constitution, question, text, answer``; ``text`` is
        the constitution as it was asked.

    Raises:
        InputError: the file can't be read or lacks a field.
    """
    content = _json(path)
    fields = ("constitution", "question", "category", "response")
    missing = [name for name in fields if not isinstance(_get(content, name), Mapping)]
    if missing:
        raise InputError(f"{path}: {missing[0]}: is missing; give answers by question number")
    rows = []
    for number, answer in content["response"].items():
        try:
            rows.append(
                {
                    "model": model,
                    "question_id": str(81 + int(number)),
                    "category": content["category"][number],
                    **_SETTING,
                    "question": content["question"][number],
                    "text": content["constitution"][number],
                    "answer": answer,
                }
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: question {one_line(str(number))}: has no category, question or "
                "constitution, or is no number"
            ) from error
        if not isinstance(answer, str):
            raise InputError(f"{path}: response.{number}: must be text, got {answer!r:.60}")
    if not rows:
        raise InputError(f"{path}: response: is empty; give answers by question number")
    return pd.DataFrame(rows)


def read_published_verdicts(
    path: Path, answers: pd.DataFrame, *, model: str, opponent: str, judge: str
) -> pd.DataFrame:
    """Return the verdicts of a file of arXiv 2410.01704's repository.

    Args:
        path: JSON, one ``[score, opponent's tokens, model's tokens]`` a question, in the order of
            MT-Bench; a score is 1 where the model won, 0 where it lost, and ½ otherwise.
        answers: as from ``read_published_answers``, for the categories.
        model: whose score it is.
        opponent: what it was compared with.
        judge: what the judge is called here.

    Returns:
        ``judge, model, opponent, question_id, category, turn, constitution, winner`` and, of the
        two answers, ``model_tokens, opponent_tokens``.

    Raises:
        InputError: the file can't be read, or doesn't fit the answers.
    """
    content = _json(path)
    own = answers[answers["model"] == model].sort_values(
        "question_id", key=lambda ids: ids.astype(int)
    )
    if not isinstance(content, list) or len(content) != len(own):
        raise InputError(
            f"{path}: must hold one verdict for each of the {len(own)} answers of {model}"
        )
    winners = {1: _WIN, 0.5: _TIE, 0: _LOSS}
    rows = []
    for number, (entry, answer) in enumerate(zip(content, own.itertuples(), strict=True)):
        if not (
            isinstance(entry, list)
            and len(entry) == 3
            and all(isinstance(each, int | float) for each in entry)
            and entry[0] in winners
        ):
            raise InputError(
                f"{path}: verdict {number}: must be [score 0, 0.5 or 1, tokens, tokens], "
                f"got {entry!r:.60}"
            )
        rows.append(
            {
                "judge": judge,
                "model": model,
                "opponent": opponent,
                "question_id": answer.question_id,
                "category": answer.category,
                **_SETTING,
                "winner": winners[entry[0]],
                "model_tokens": int(entry[2]),
                "opponent_tokens": int(entry[1]),
            }
        )
    return pd.DataFrame(rows)


def answers_from_file(
    model: str,
    path: Path,
    questions: pd.DataFrame,
    constitutions: pd.DataFrame,
    *,
    without_constitution: bool,
    count_tokens: Callable[[str], int],
) -> pd.DataFrame:
    """Return a file's answers to what models under test are asked, as ``answer_questions`` does.

    Args:
        model: what its answers are called.
        path: this project's format or FastChat's, see ``read_answers``. Answers without a
            constitution stand for those under every one, as of a model that is not told it.
        questions: ``question_id, category, turn, question``, all that are asked.
        constitutions: ``query_id, constitution, stances, text``.
        without_constitution: every question is also asked under none.
        count_tokens: of an answer whose file does not say.

    Raises:
        InputError: the file can't be read, lacks an answer, or has answers that were given under
            other statements.
    """
    given = read_answers(path)
    key = ["question_id", "turn", *(["constitution"] if "constitution" in given else [])]
    if twice := given[given.duplicated(key)].to_dict("records"):
        raise InputError(f"{path}: {_asked(twice[0], key)} is answered twice; remove one")
    known = given.set_index(key).to_dict("index")

    def look_up(rows: pd.DataFrame, description: str) -> pd.DataFrame:
        records = rows.to_dict("records")
        wanted = [tuple(record[name] for name in key) for record in records]
        answered = [name in known for name in wanted]
        if missing := [each for each, there in zip(records, answered, strict=True) if not there]:
            raise InputError(
                f"{path}: {_asked(missing[0], key)} is not answered, nor are {len(missing) - 1} "
                "others that are asked; add them, or ask fewer: evaluation.turns, "
                "questions_per_category, contrasting, without_constitution"
            )
        found = [known[name] for name in wanted]
        for record, answer in zip(records, found, strict=True):
            other = answer.get("stances", record["stances"])
            if record["stances"] != other and isinstance(record["text"], str):
                raise InputError(
                    f"{path}: {_asked(record, key)} was answered under other statements; take the "
                    "principles and evaluation.seed of the run that the file is from"
                )
        texts = [answer["answer"] for answer in found]
        return rows.assign(
            prompt="",
            answer=texts,
            finish_reason=[answer.get("finish_reason", "stop") for answer in found],
            prompt_tokens=0,
            completion_tokens=[
                int(answer.get("completion_tokens", count_tokens(text)))
                for answer, text in zip(found, texts, strict=True)
            ],
        )

    return answer_questions(
        model, questions, constitutions, look_up, without_constitution=without_constitution
    )


def check_answer_files(
    parameters: JudgedParameters,
    questions: pd.DataFrame,
    principles: pd.DataFrame | None,
    project_folder: Path,
) -> None:
    """Check, before anything is made, that files of answers hold all that is asked.

    Args:
        parameters: of the experiment.
        questions: ``question_id, category, turn, question``.
        principles: as from ``tabulate_principles``; None where they are not read in this run, and
            answers in trained words are then looked for when the file is read.
        project_folder: what relative paths are relative to.

    Raises:
        InputError: as ``answers_from_file``, the statements aside, which are not known yet; or
            trained words are asked for, and no principle has others in evaluation.
    """
    settings = parameters.evaluation
    asked = asked_questions(questions, settings)
    names = ["desired", *(["contrasting"] if settings.contrasting else [])]
    under = [(query, name) for name in names for query in asked["question_id"].unique()]
    if settings.trained_wording and principles is not None:
        first = asked[asked["turn"] == 1].rename(columns={"question_id": "query_id"})
        again = desired_in_trained_wording(first, principles, seed=settings.seed)
        under += list(zip(again["query_id"], again["constitution"], strict=True))
    constitutions = pd.DataFrame(under, columns=["query_id", "constitution"])
    constitutions = constitutions.assign(stances="[]", text=None)
    for model, location in parameters.models.answer_files.items():
        if model in parameters.models.under_test:
            answers_from_file(
                model,
                project_folder / files.from_home(location),
                asked,
                constitutions,
                without_constitution=settings.without_constitution,
                count_tokens=len,
            )


def _asked(record: Mapping[str, Any], key: Sequence[str]) -> str:
    under = f" under the constitution {record['constitution']!r}" if "constitution" in key else ""
    return f"question {one_line(str(record['question_id']))}, turn {record['turn']}{under},"


def read_answers(path: Path) -> pd.DataFrame:
    """Return the answers of one model from a file, one row a turn.

    Args:
        path: an ``answers`` table of this project (``.parquet``), JSON lines with
            ``question_id, turn, answer`` and, where it was given, ``constitution``, or FastChat's
            ``model_answer`` (JSON lines with ``choices``, of which the first is taken).

    Returns:
        ``question_id, turn, answer`` and, where the file has them, ``constitution, stances,
        finish_reason, completion_tokens``.

    Raises:
        InputError: the file can't be read, lacks a field or holds answers of several models.
    """
    if path.suffix == ".parquet":
        content = outside_files.content_of(str(path), str(path))
        table = outside_files.parquet_table(content, str(path))
        places = [f"{path}: row {number}" for number in range(1, len(table) + 1)]
        entries = list(zip(places, table.to_dict("records"), strict=True))
    else:
        entries = _json_lines(path)
    rows, places = [], []
    for place, entry in entries:
        if "choices" in entry:
            turns = _turns(place, entry)
            rows += [
                {"question_id": str(_get(entry, "question_id")), "turn": turn, "answer": answer}
                for turn, answer in enumerate(turns, start=1)
            ]
            places += [place] * len(turns)
            continue
        if missing := [name for name in ("question_id", "turn", "answer") if name not in entry]:
            raise InputError(f"{place}: {missing[0]}: is missing")
        kept = {name: entry[name] for name in _ANSWER_FIELDS if name in entry}
        rows.append(kept | {"question_id": str(entry["question_id"])})
        places.append(place)
    for place, row in zip(places, rows, strict=True):
        _check_fields(place, row)
    names = {str(entry.get("model", entry.get("model_id", ""))) for _, entry in entries}
    if len(names) > 1:
        raise InputError(
            f"{path}: holds answers of several models ({', '.join(sorted(names))}); give one each "
            "a file"
        )
    table = pd.DataFrame(rows)
    if table.isna().any(axis=None):
        column = table.columns[table.isna().any()][0]
        raise InputError(f"{path}: {column}: is given in some lines only; give it in all or none")
    return table


def _check_fields(place: str, row: Mapping[str, Any]) -> None:
    """Refuse an answer whose fields are of another kind than those of this project's tables."""
    for name, value in row.items():
        kinds, what = _ANSWER_KINDS.get(name, (str, "text"))
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise InputError(f"{place}: {name}: must be {what}, got {one_line(repr(value)):.60}")


def _turns(place: str, entry: Mapping[str, Any]) -> list[Any]:
    try:
        turns = entry["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        raise InputError(f"{place}: choices[0].turns is missing") from None
    if not isinstance(turns, list | np.ndarray):  # an array in parquet
        raise InputError(f"{place}: choices[0].turns: must be a list of texts")
    return list(turns)


def read_fastchat_answers(path: Path, categories: Mapping[str, str]) -> pd.DataFrame:
    """Return the answers of a FastChat ``model_answer`` file, one row a turn.

    Args:
        path: JSON lines with ``question_id, model_id, choices``; the first choice is taken.
        categories: the category of each question id.

    Raises:
        InputError: a line can't be read, or answers a question that isn't known.
    """
    rows = []
    for place, entry in _json_lines(path):
        question = str(_get(entry, "question_id"))
        try:
            model, turns = str(entry["model_id"]), entry["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{place}: model_id and choices[0].turns are missing") from None
        if question not in categories:
            raise InputError(f"{place}: question_id {one_line(question)!r} is no known question")
        rows += [
            {
                "model": model,
                "question_id": question,
                "category": categories[question],
                "turn": turn,
                "constitution": "none",
                "answer": str(answer),
            }
            for turn, answer in enumerate(turns, start=1)
        ]
    return pd.DataFrame(rows, columns=list(_ANSWERS))


def read_fastchat_verdicts(path: Path, categories: Mapping[str, str]) -> pd.DataFrame:
    """Return the verdicts of a FastChat pairwise judgement file (``model_judgment/*_pair.jsonl``).

    As in FastChat's ``show_result.py``, a model wins where both orders say so; two different
    verdicts are a tie, and so is an order that failed ("error") together with one that did not.

    Args:
        path: JSON lines with ``question_id, model_1, model_2, g1_winner, g2_winner, judge, turn``.
        categories: the category of each question id.

    Raises:
        InputError: a line can't be read, or is on a question that isn't known.
    """
    rows = []
    for place, entry in _json_lines(path):
        missing = [n for n in ("model_1", "model_2", "g1_winner", "g2_winner") if n not in entry]
        if missing:
            raise InputError(f"{place}: {missing[0]}: is missing; is this a pairwise judgement?")
        question = str(_get(entry, "question_id"))
        if question not in categories:
            raise InputError(f"{place}: question_id {one_line(question)!r} is no known question")
        judge = entry.get("judge", "unknown")
        rows.append(
            {
                "judge": judge[0] if isinstance(judge, list) else str(judge),
                "model": str(entry["model_1"]),
                "opponent": str(entry["model_2"]),
                "question_id": question,
                "category": categories[question],
                "turn": int(entry.get("turn", 1)),
                "constitution": "none",
                "winner": _fastchat_winner(entry["g1_winner"], entry["g2_winner"]),
            }
        )
    return pd.DataFrame(rows, columns=list(_VERDICTS))


def read_fastchat_ratings(path: Path, categories: Mapping[str, str]) -> pd.DataFrame:
    """Return the ratings of a FastChat single judgement file (``model_judgment/*_single.jsonl``).

    Args:
        path: JSON lines with ``question_id, model, score, turn``; a score of −1 is none.
        categories: the category of each question id.

    Returns:
        ``judge, model, question_id, category, turn, constitution, rating``, NaN where there is
        none.

    Raises:
        InputError: a line can't be read, or is on a question that isn't known.
    """
    rows = []
    for place, entry in _json_lines(path):
        question, score = str(_get(entry, "question_id")), _get(entry, "score")
        if "model" not in entry or not isinstance(score, int | float):
            raise InputError(f"{place}: model or score is missing; is this a single judgement?")
        if question not in categories:
            raise InputError(f"{place}: question_id {one_line(question)!r} is no known question")
        judge = entry.get("judge", "unknown")
        rows.append(
            {
                "judge": judge[0] if isinstance(judge, list) else str(judge),
                "model": str(entry["model"]),
                "question_id": question,
                "category": categories[question],
                "turn": int(entry.get("turn", 1)),
                "constitution": "none",
                "rating": float(score) if score >= 0 else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _fastchat_winner(first: str, second: str) -> str:
    if not {first, second} & _FASTCHAT_WINNERS:
        return _INVALID
    if first == second and first != "tie":
        return _WIN if first == "model_1" else _LOSS
    return _TIE


def _json(path: Path) -> Any:
    return text_files.json_value(outside_files.content_of(str(path), str(path)), str(path))


def _json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return each line's place and object."""
    content = outside_files.content_of(str(path), str(path))
    entries = list(text_files.json_lines(content, str(path)))
    if not entries:
        raise InputError(f"{path}: is empty; it needs one JSON object a line")
    return entries


def _get(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, Mapping) else None
