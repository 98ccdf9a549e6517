"""Training responses: which are written, and which of them can be used."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pandas as pd
from rapidfuzz.distance import Levenshtein

from sami_pipeline import schemas
from sami_pipeline.engines import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import FiltersParameters, GenerationParameters
from sami_pipeline.principles.constitutions import (
    DESIRED,
    OPPOSITE,
    choose_wordings,
    format_statements,
    wording,
)
from sami_pipeline.principles.degeneration import is_degenerate
from sami_pipeline.principles.statements import checks_by_category

USABLE = "usable"
FEW_GRIDS = 16
"""Fewer are hardly a training."""
# By the status that most training queries have where none is usable.
_REMEDIES = {
    "failed": "look after the server of generation.engine, then go on with --only-missing-outputs",
    "prompt_too_long": "lower generation.max_new_tokens, or take a teacher with a longer context",
    "empty": "the teacher says nothing: look at the generations and its prompt template",
    "same_response": "the teacher answers alike under all constitutions: raise "
    "generation.temperature, take another teacher or principles that it can tell apart",
    "truncated": "raise generation.max_new_tokens, or set generation.keep_truncated: true",
    "degenerate": "take another teacher, or set generation.keep_degenerate: true",
    "filter_word": "take words out of generation.filters.words",
    "too_short": "lower generation.filters.minimum_characters",
    "length_ratio": "lower generation.filters.minimum_length_ratio",
    "too_long_for_student": "lower generation.max_new_tokens, or take a student with a longer "
    "context",
    "too_similar": "lower generation.filters.minimum_edit_distance",
}


def choose_queries(
    queries: pd.DataFrame, parameters: GenerationParameters, half: int | None = None
) -> pd.DataFrame:
    """Return the queries to answer, each with its ``split``: "train" or "held_out".

    A seeded sample of every category; held-out queries are never trained on. Where the queries have
    their ``split`` already, all are answered. With ``half`` (0 or
    1) only every second training query of a category, so that the halves share none; the
    held-out queries are the same in both.

    Raises:
        InputError: a category has fewer queries than asked for.
    """
    parts = []
    if "split" in queries:
        train = queries["split"] == "train"
        number = train.groupby(queries["category"]).cumsum() - 1
        kept = ~train | (half is None) | (number % 2 == half)
        return queries[kept].reset_index(drop=True)
    for category, table in queries.groupby("category", sort=True):
        wanted = parameters.queries_per_category or len(table)
        if len(table) < wanted:
            raise InputError(
                f"queries: category {category} has {len(table)}, but "
                f"generation.queries_per_category is {parameters.queries_per_category}; "
                "raise queries.per_category (mt_bench) or problems.train (math)"
            )
        chosen = table.sample(wanted, random_state=parameters.seed)
        held_out = parameters.held_out_per_category
        splits = ["held_out" if i < held_out else "train" for i in range(len(chosen))]
        kept = [
            half is None or i < held_out or (i - held_out) % 2 == half for i in range(len(chosen))
        ]
        parts.append(chosen.assign(split=splits)[kept])
    return pd.concat(parts, ignore_index=True)


def generation_requests(
    queries: pd.DataFrame,
    constitutions: pd.DataFrame,
    template: PromptTemplate,
    sampling: SamplingParameters,
) -> tuple[pd.DataFrame, list[GenerationRequest]]:
    """Return the (query, constitution) rows with their prompts, and the requests to send."""
    rows = queries.merge(constitutions.drop(columns="category"), on="query_id", validate="1:m")
    stances = _stances(rows, template, "generation_prompt")
    prompts = [
        template.build([query], constitution=text, stances=taken)
        for query, text, taken in zip(rows["query"], rows["text"], stances, strict=True)
    ]
    rows = rows.assign(prompt=[prompt.to_json() for prompt in prompts])
    return rows, [GenerationRequest(prompt, sampling) for prompt in prompts]


def with_completions(rows: pd.DataFrame, completions: list[Completion]) -> pd.DataFrame:
    """Return the rows with what was written, how it ended and how long it is."""
    return rows.assign(
        response=[completion.text for completion in completions],
        finish_reason=[completion.finish_reason for completion in completions],
        prompt_tokens=[completion.prompt_tokens for completion in completions],
        completion_tokens=[completion.completion_tokens for completion in completions],
        end_token=[completion.end_token for completion in completions],
    )


def mark_usable(generations: pd.DataFrame, parameters: GenerationParameters) -> pd.DataFrame:
    """Return the generations with ``status``: "usable", or why their query cannot be trained on.

    A grid needs all its responses, so one unusable response makes the whole grid unusable; the
    reason stands in every row of the grid. Reasons, the first that applies: failed,
    prompt_too_long, empty, same_response, truncated, filter_word, too_short, length_ratio,
    too_similar, degenerate.
    """
    keys = list(zip(generations["query_id"], generations["grid"], strict=True))
    groups: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for key, response, reason in zip(
        keys, generations["response"].str.strip(), generations["finish_reason"], strict=True
    ):
        groups.setdefault(key, []).append((response, reason))
    status = {key: _status(group, parameters) for key, group in groups.items()}
    return generations.assign(status=[status[key] for key in keys])


def _status(group: list[tuple[str, str]], parameters: GenerationParameters) -> str:
    responses, reasons = zip(*group, strict=True)
    for reason in ("failed", "prompt_too_long"):
        if reason in reasons:
            return reason
    if "" in responses:
        return "empty"
    if len(set(responses)) < len(responses):
        return "same_response"
    if not parameters.keep_truncated and "length" in reasons:
        return "truncated"
    if fault := _filtered(responses, parameters.filters):
        return fault
    if not parameters.keep_degenerate and any(map(is_degenerate, responses)):
        return "degenerate"
    return USABLE


def with_desired_first(responses: pd.DataFrame, *, once: bool) -> pd.DataFrame:
    """Return the responses without training grids whose first constitution isn't the desired one.

    With ``contrast: pairs`` not every grid has the desired constitution, and a method that
    imitates or prefers its response can use only those that do. Held-out grids all stay.

    Args:
        responses: ``query_id, grid, constitution_index, constitution, split, status``.
        once: keep one grid of a query, so that its desired response isn't imitated twice.
    """
    train = responses["split"] == "train"
    first = responses[train & (responses["status"] == USABLE)].sort_values("constitution_index")
    first = first.drop_duplicates(["query_id", "grid"])
    wanted = first[first["constitution"] == DESIRED]
    if once:
        wanted = wanted.drop_duplicates("query_id")
    kept = set(zip(wanted["query_id"], wanted["grid"], strict=True))
    keys = zip(responses["query_id"], responses["grid"], strict=True)
    return responses[~train | pd.Series([key in kept for key in keys], index=responses.index)]


def _filtered(responses: Sequence[str], filters: FiltersParameters) -> str | None:
    """Return which of the published filters (arXiv 2410.01704) a grid's responses fall to."""
    if any(word in response for word in filters.words for response in responses):
        return "filter_word"
    shortest, longest = min(responses, key=len), max(responses, key=len)
    if len(shortest) < filters.minimum_characters:
        return "too_short"
    if len(longest) < filters.minimum_length_ratio * len(shortest):
        return "length_ratio"
    distance = Levenshtein.distance(shortest, longest[: len(shortest)])
    if distance < filters.minimum_edit_distance * len(shortest):
        return "too_similar"
    return None


def teacher_compliance(generations: pd.DataFrame, principles: pd.DataFrame) -> pd.DataFrame:
    """Return how often responses pass each check when asked to, and when asked the opposite.

    Args:
        generations: ``query_id, category, stances, response, finish_reason``; those that a server
            failed to give say nothing about the teacher and are left out.
        principles: as from ``tabulate_principles``.

    Returns:
        ``category, principle, stance, check, n_asked, asked, n_unasked, unasked``; ``check`` says
        in words what was asked of a response, shares in [0, 1],
        NaN where no response was asked for that stance.
    """
    checks = checks_by_category(principles)
    rows = []
    given = generations[generations["finish_reason"] != "failed"]
    for category, group in given.groupby("category", sort=True):
        passed: dict[tuple[str, str, str], dict[str, list[bool]]] = {}
        for row in group.itertuples(index=False):
            stances = json.loads(row.stances)
            for kind, asked in (
                ("asked", stances),
                ("unasked", [(name, OPPOSITE[stance]) for name, stance in stances]),
            ):
                for statement in checks[category].outcomes(
                    row.response, asked, truncated=row.finish_reason == "length"
                ):
                    key = (statement.principle, statement.stance, statement.asked)
                    cell = passed.setdefault(key, {"asked": [], "unasked": []})
                    cell[kind].append(statement.passed)
        for (principle, stance, check), cell in sorted(passed.items()):
            rows.append(
                {
                    "category": category,
                    "principle": principle,
                    "stance": stance,
                    "check": check,
                    "n_asked": len(cell["asked"]),
                    "asked": float(pd.Series(cell["asked"], dtype=float).mean()),
                    "n_unasked": len(cell["unasked"]),
                    "unasked": float(pd.Series(cell["unasked"], dtype=float).mean()),
                }
            )
    return schemas.TeacherCompliance.tabulate(rows)


def count_statuses(responses: pd.DataFrame) -> pd.DataFrame:
    """Return ``category, split, status, queries``: how many queries had each fate.

    A query with several grids counts once for each.
    """
    first = responses.drop_duplicates(["query_id", "grid"])
    keys = ["category", "split", "status"]
    return first.groupby(keys, sort=True).size().rename("queries").reset_index()


def shortage(counts: pd.DataFrame) -> list[str]:
    """Return in words where little is left to train on, from which hardly anything can be learnt.

    Args:
        counts: as from ``count_statuses``.

    Raises:
        InputError: nothing is left.
    """
    train = counts[counts["split"] == "train"]
    usable = train[train["status"] == USABLE]
    if usable.empty:
        reasons = train.groupby("status")["queries"].sum().sort_values(ascending=False)
        listed = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise InputError(
            f"responses: no training query is left of {reasons.sum()} ({listed}); "
            f"{_REMEDIES.get(reasons.index[0], _REMEDIES['too_similar'])}"
        )
    found = []
    if (grids := int(usable["queries"].sum())) < FEW_GRIDS:
        found.append(f"only {grids} grids are left to train on")
    if without := sorted(set(train["category"]) - set(usable["category"])):
        found.append(f"none is left to train on of {', '.join(without)}")
    return found


def with_training_prompts(
    rows: pd.DataFrame, principles: pd.DataFrame, template: PromptTemplate, seed: int
) -> pd.DataFrame:
    """Return the rows with ``training_prompt``: the prompt each response is trained under.

    It may follow another template than the one the response was written under. Its principles
    are shuffled again and their wordings drawn again, alike for all constitutions of a query.
    """
    by_category = {name: wording(table) for name, table in principles.groupby("category")}
    prompts = []
    stances = _stances(rows, template, "training_prompt")
    for row, taken in zip(rows.itertuples(index=False), stances, strict=True):
        key = f"{seed}/training/{row.query_id}"
        text = format_statements(
            taken,
            choose_wordings(by_category[row.category], key),
            random.Random(key),
        )
        prompt = template.build([row.query], constitution=text, stances=taken)
        prompts.append(prompt.to_json())
    return rows.assign(training_prompt=prompts)


def _stances(
    rows: pd.DataFrame, template: PromptTemplate, name: str
) -> list[list[tuple[str, str]]]:
    """Return each row's (principle, stance) pairs.

    Raises:
        InputError: the template begins answers by a principle that no constitution has.
    """
    stances = [[(each, stance) for each, stance in json.loads(text)] for text in rows["stances"]]
    known = {principle for taken in stances for principle, _ in taken}
    if unknown := sorted(template.answer_begins.keys() - known):
        raise InputError(
            f"prompt template {name}: answer_begins: {unknown[0]!r} is no principle of these "
            f"constitutions; known: {', '.join(sorted(known))}"
        )
    return stances
