"""Language models as judges: two answers compared in both orders, or each graded from 1 to 10.

The protocol is MT-Bench's (arXiv 2306.05685): its own prompts, reference answers in three
categories, both turns shown at the second. The same protocol with another prompt asks which answer
follows the constitution better (arXiv 2404.14313). Who asks a model is not this module's business:
it plans the prompts and reads the verdicts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from string import Formatter

import pandas as pd

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.intervals import NO_ROWS, mean_interval
from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.evaluation.judge_kinds.base import JudgeKind, Orders, drawn_order, rated
from sami_pipeline.evaluation.mt_bench import WRONG_REFERENCES
from sami_pipeline.evaluation.seeds import (
    OPPONENT_SEED,
    SEED,
    Lineage,
    labelled,
    labelled_pairs,
    model_of,
    seed_columns,
    seeds_in,
    unlabelled,
    with_seeds,
)
from sami_pipeline.evaluation.statistics import (
    ANSWER_KEY,
    by_category,
    by_turn,
    require_rows,
    with_clusters,
)
from sami_pipeline.evaluation.verdict_parser import HIGHEST_RATING, INVALID, LOWEST_RATING
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.tables import StoredTable, columns_of

logger = logging.getLogger(__name__)

REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
"""Where MT-Bench's judge sees a reference answer."""

_MULTI_TURN = "-multi-turn"

_PLANNED_COLUMNS = [
    "judge", "model", "opponent", *ANSWER_KEY, "category", "order", "sample", "prompt",
    "answered",
]  # fmt: skip


def prompt_name(kind: str, turn: int, *, referenced: bool) -> str:
    """Return the name of the judge's prompt, among MT-Bench's own and those of this project."""
    own = judge_kind(kind)
    name = (referenced and own.prompt_with_reference) or own.prompt
    return name if turn == 1 else f"{name}{_MULTI_TURN}"


def plan_judgements(
    kind: str,
    answers: pd.DataFrame | StoredTable,
    questions: pd.DataFrame,
    constitutions: pd.DataFrame,
    prompts: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    constrained: bool,
    orders: Orders = "both",
    seed: int = 0,
    repeats: int = 1,
    lineage: Lineage | None = None,
) -> pd.DataFrame:
    """Return what a judge is asked: every comparison in both orders or one, or every answer once.

    At turn 2 a judge sees both turns, with each model's own answer to the first under the same
    constitution. Degenerate answers are shown like any other. A question of a reference category
    whose only reference answer is wrong is judged without one, and the log says so. A kind that
    sees the constitution leaves out answers that were given under none.

    Args:
        kind: the name of one of ``judge_kinds``.
        answers: ``model, question_id, category, turn, constitution, answer``.
        questions: ``question_id, turn, question, reference``.
        constitutions: ``query_id, constitution, text``, where query_id is a question_id.
        prompts: ``name, system_prompt, prompt_template``.
        pairs: (model, opponent) names.
        constrained: end each prompt with the words that a verdict of ``CONSTRAINED`` follows.
        orders: "random" asks each comparison in one order, see ``drawn_order``.
        seed: of the orders that are drawn.
        repeats: how often each call is asked.
        lineage: see ``seeds``; where answers name training seeds, replicates are compared.

    Returns:
        One row per call: ``judge, model, opponent, question_id, turn, constitution, category,
        order, sample, prompt, answered``; sample numbers the repeats from 0; order is "model_first"
        or "opponent_first", and where one answer is graded, "single", with "" for the opponent;
        answered is whether any of the answers shown holds more than white space.

    Raises:
        InputError: a prompt is missing or has the wrong placeholders, or a question of a reference
            category has no reference answer.
        ValueError: two models did not answer the same.
    """
    answers = columns_of(answers, ["model", *ANSWER_KEY, "category", "answer", SEED])
    own = judge_kind(kind)
    if replicated := SEED in answers:
        pairs = labelled_pairs(answers, pairs, lineage or {})
        answers = labelled(answers)
    if own.sees_constitution:
        answers = answers[answers["constitution"] != "none"]
    texts = _Texts(answers, questions, constitutions)
    known = prompts.set_index("name").to_dict("index")
    templates: dict[str, _Template] = {}
    opening = own.constrained.opening if constrained else ""
    if own.prompt_with_reference:
        texts.log_references()
    rows = []
    asked = [
        (*match, order, list(ways), sides)
        for match, ways in own.matches(pairs).items()
        for order, sides in ways.items()
    ]
    for model, opponent, order, ways, sides in asked:
        for key in texts.answered(set(sides.values())):
            question_id, turn, _ = key
            if orders == "random" and order != drawn_order(
                ways, seed, model_of(model), model_of(opponent), question_id
            ):
                continue
            category = texts.categories[question_id]
            name = prompt_name(kind, turn, referenced=texts.has_references(question_id, turn))
            values = texts.values(key, sides)
            if name not in templates:
                templates[name] = _Template(name, known, values, _needed(own, sides, turn))
            prompt = templates[name].fill(values, opening, question_id)
            answered = any(texts.answers[side][key].strip() for side in sides.values())
            call = (kind, model, opponent, *key, category, order)
            rows += [(*call, sample, prompt.to_json(), answered) for sample in range(repeats)]
    planned = pd.DataFrame(rows, columns=_PLANNED_COLUMNS)
    return unlabelled(planned) if replicated else planned


def check_prompts(kind: str, prompts: pd.DataFrame, questions: pd.DataFrame) -> None:
    """Check, before anything is answered, that a judge can be asked about these questions.

    Args:
        kind: as in ``plan_judgements``.
        prompts: ``name, system_prompt, prompt_template``.
        questions: ``question_id, category, turn, question, reference``.

    Raises:
        InputError: what ``plan_judgements`` would raise once the answers are there.
    """
    plan_blank(kind, questions, prompts, constrained=False)


def plan_blank(
    kind: str, questions: pd.DataFrame, prompts: pd.DataFrame, *, constrained: bool
) -> pd.DataFrame:
    """Return what a judge would be asked of two models that answer nothing.

    See ``plan_judgements``.
    """
    answers = questions.assign(model="a", constitution="desired", answer="-")
    answers = pd.concat([answers, answers.assign(model="b")], ignore_index=True)
    rules = questions.drop_duplicates("question_id").rename(columns={"question_id": "query_id"})
    rules = rules.assign(constitution="desired", text="-")
    pairs = [("a", "b")]
    return plan_judgements(kind, answers, questions, rules, prompts, pairs, constrained=constrained)


class _Texts:
    """Questions, references, constitutions and answers by what names them."""

    def __init__(
        self, answers: pd.DataFrame, questions: pd.DataFrame, constitutions: pd.DataFrame
    ) -> None:
        require_rows(answers, ["model", *ANSWER_KEY], ["category", "answer"])
        asked = [questions["question_id"], questions["turn"]]
        self.questions = dict(zip(zip(*asked, strict=True), questions["question"], strict=True))
        self.references = dict(zip(zip(*asked, strict=True), questions["reference"], strict=True))
        rules = zip(constitutions["query_id"], constitutions["constitution"], strict=True)
        self.rules = dict(zip(rules, constitutions["text"], strict=True))
        self.categories = dict(zip(answers["question_id"], answers["category"], strict=True))
        self.answers: dict[str, dict[tuple[str, int, str], str]] = {
            model: dict(
                zip(
                    given[ANSWER_KEY].itertuples(index=False, name=None),
                    given["answer"],
                    strict=True,
                )
            )
            for model, given in answers.groupby("model")
        }

    def has_references(self, question_id: str, turn: int) -> bool:
        """Tell whether a judge sees reference answers to a question's turns up to this one.

        Only where GPT-4's is wrong and there is no other the judge does without.
        """
        if self.categories[question_id] not in REFERENCE_CATEGORIES:
            return False
        there = all(self.references[question_id, number] for number in range(1, turn + 1))
        return there or question_id not in WRONG_REFERENCES

    def log_references(self) -> None:
        """Log which questions of reference categories are judged without one."""
        lacking = sorted(
            question
            for question, category in self.categories.items()
            if category in REFERENCE_CATEGORIES and not self.has_references(question, 1)
        )
        if lacking:
            logger.warning(
                "Judge: %d questions have no reference answer but a wrong one, and are judged "
                "without: %s",
                len(lacking), ", ".join(lacking),
            )  # fmt: skip

    def answered(self, models: Collection[str]) -> list[tuple[str, int, str]]:
        """Return what all these models answered, sorted; each must have answered the same."""
        keys = [self.answers.get(model, {}).keys() for model in sorted(models)]
        for other in keys[1:]:
            if odd := sorted(keys[0] ^ other):
                raise ValueError(
                    f"{' and '.join(sorted(models))} did not answer the same: "
                    f"question_id, turn, constitution = {odd[0]}"
                )
        return sorted(keys[0])

    def values(self, key: tuple[str, int, str], sides: Mapping[str, str]) -> dict[str, str]:
        """Return what the placeholders of a prompt stand for."""
        question_id, turn, constitution = key
        values = {"constitution": self.rules.get((question_id, constitution), "")}
        for number in range(1, turn + 1):
            values[f"question_{number}"] = self.questions[question_id, number]
            values[f"ref_answer_{number}"] = self.references[question_id, number]
            for side, model in sides.items():
                answer = self.answers[model][question_id, number, constitution]
                values[f"{side}_{number}"] = answer
                if turn == 1:
                    values[side] = answer
        if turn == 1:
            values["question"] = values["question_1"]
        return values


def _needed(kind: JudgeKind, sides: Mapping[str, str], turn: int) -> set[str]:
    sides_shown = set(sides) if turn == 1 else {f"{side}_{turn}" for side in sides}
    return sides_shown | ({"constitution"} if kind.sees_constitution else set())


class _Template:
    """A prompt for a judge, checked when it is first used."""

    def __init__(
        self,
        name: str,
        known: Mapping[str, Mapping[str, str]],
        values: Collection[str],
        needed: Collection[str],
    ) -> None:
        if name not in known:
            alone = ", or ask first turns alone: evaluation.turns=1"
            raise InputError(
                f"judge_prompts: {name} is missing; it comes from mt_bench/judge_prompts.jsonl or "
                "a file in data/01_raw/judge_prompts; write it there"
                f"{alone if name.endswith(_MULTI_TURN) else ''}"
            )
        self.system = known[name]["system_prompt"]
        self.text = known[name]["prompt_template"]
        place = f"judge prompt {name}: prompt_template"
        try:
            parsed = list(Formatter().parse(self.text))
        except ValueError as error:
            raise InputError(
                f"{place}: write braces that are no placeholder doubled ({error})"
            ) from error
        self.fields = {field for _, field, _, _ in parsed if field is not None}
        for field in sorted(self.fields.difference(values)):
            raise InputError(
                f"{place}: the placeholder {{{field}}} is unknown; "
                f"known: {', '.join(sorted(values))}"
            )
        for _, field, specification, conversion in parsed:
            if specification or conversion:
                raise InputError(f"{place}: the placeholder {{{field}}} takes no format")
        for field in sorted(set(needed) - self.fields):
            raise InputError(f"{place}: the placeholder {{{field}}} is missing")

    def fill(self, values: Mapping[str, str], opening: str, question_id: str) -> Prompt:
        for field in sorted(self.fields):
            if field.startswith("ref_answer_") and not values[field]:
                raise InputError(
                    f"question {question_id}: {field}: is empty; the judge needs references for "
                    f"{', '.join(REFERENCE_CATEGORIES)}: write them in the question file or in "
                    "data/01_raw/mt_bench/reference_answer, or take judge.kind: constitution, "
                    "which is shown none"
                )
        messages = [("system", self.system)] if self.system.strip() else []
        messages.append(("user", self.text.format(**values)))
        if opening:
            messages.append(("assistant", opening))
        return Prompt(messages=tuple(messages))


def read_verdict(kind: str, text: str, *, constrained: bool, truncated: bool = False) -> str:
    """Return the verdict in a judge's text: "A", "B", "C", a rating, "invalid" or "contradictory".

    Args:
        kind: what the judge was asked for.
        text: what it wrote; what went before, the opening of a constrained verdict, left out.
        constrained: the text must be one of the choices, and is a verdict as it stands.
        truncated: the text was cut off at its token limit.
    """
    own = judge_kind(kind)
    if constrained:
        return text.removesuffix("]]") if text in own.constrained.choices else INVALID
    return own.parse(text, truncated)


def combine_repeats(judgements: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return one row a call, with the verdict of all its repeats; see ``JudgeKind.combine``.

    Args:
        judgements: ``judge, model, opponent, question_id, turn, constitution, order, sample,
            verdict``; a call's other columns are those of its first repeat.
        kind: the judge's.
    """
    if not (judgements["sample"] > 0).any():
        return judgements
    key = ["judge", "model", "opponent", *ANSWER_KEY, "order", *seed_columns(judgements)]
    verdicts = judgements.groupby(key, sort=False)["verdict"].agg(list)
    combined = verdicts.map(judge_kind(kind).combine)
    first = judgements[judgements["sample"] == 0]
    return first.assign(verdict=combined.loc[pd.MultiIndex.from_frame(first[key])].to_numpy())


def ratings(judgements: pd.DataFrame) -> pd.DataFrame:
    """Mean rating of each model under each constitution, per category and turn.

    Args:
        judgements: single grading, as ``decide_ratings`` takes it.

    Returns:
        One row per (judge, model, constitution, turn, category of ``by_category``); turn is "both",
        which is all that were rated, "1" or "2". ``n`` counts questions, ``rows`` valid ratings,
        ``invalid`` the others; a cell without any valid one has a NaN rating. Intervals are over
        questions.
    """
    graded_answers = with_clusters(
        rated(judgements), ["judge", "model", "constitution", "turn", "category", "rating"]
    )
    records = []
    for (judge, model, constitution), graded in graded_answers.groupby(
        ["judge", "model", "constitution"], sort=False
    ):
        for turn, given in by_turn(graded):
            for category, rows in by_category(given):
                valid = rows.dropna(subset="rating")
                mean = NO_ROWS
                if len(valid):
                    mean = mean_interval(
                        valid["rating"],
                        valid["question_id"],
                        limits=(LOWEST_RATING, HIGHEST_RATING),
                        seeds=seeds_in(valid.drop(columns=OPPONENT_SEED, errors="ignore")),
                    )
                counts = (*mean.counts, mean.seeds, len(rows) - len(valid))
                key = (judge, model, constitution, category, turn)
                records.append((*key, *counts, *mean.bounds))
    columns = ["judge", "model", "constitution", "category", "turn", "n", "rows", "seeds"]
    columns += ["invalid", "rating", "ci_low", "ci_high"]
    return with_seeds(judgements, pd.DataFrame(records, columns=columns))
