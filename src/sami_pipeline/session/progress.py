"""What a run says while it runs: what will run, each stage with its place, and what models write.

A stage is a node in which a model is trained, writes or judges; what is read before the first of
them, the tables and figures after the last, and the report are one stage each. Nodes in between
that take a moment belong to the stage before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.pipeline.node import Node
from pydantic import ValidationError

from sami_pipeline.experiments.registry import experiments
from sami_pipeline.figures import label
from sami_pipeline.reporting.record import NodeRecord
from sami_pipeline.reporting.run import duration

# What nodes with a model in them do, by their name without its pipeline.
_STAGES = {
    r"write_responses|ask_hosted_teacher": "training responses are written under each constitution",
    r"copy_solutions": "worked solutions are copied as training responses",
    r"train_(\w+)": "{0} is trained",
    r"answer_as_(\w+)": "{0} answers the questions",
    r"attempt_as_(\w+)": "{0} attempts the problems",
    r"respond_as_(\w+)": "{0} responds to held-out queries",
    r"judge_answers": "answers are judged",
    r"write_principles": "principles are written and tried",
}
_INPUTS, _TABLES, _REPORT = "inputs and models are read", "tables and figures", "the report"
_SHOWN_CHARACTERS = 160
_SIDES = {"desired": "the principle", "contrasting": "the opposite of"}


@dataclass(frozen=True)
class Stage:
    """Nodes that are told of together.

    Attributes:
        title: what happens.
        nodes: their names.
        seconds: how long they took when they last ran here; None if that is not known.
    """

    title: str
    nodes: tuple[str, ...]
    seconds: float | None


def stages_of(nodes: Sequence[Node], seconds: Mapping[str, float]) -> list[Stage]:
    """Return the stages of the nodes of a run, in their order.

    Args:
        nodes: those that will run.
        seconds: how long each took when it last ran, by name; some may be missing.
    """
    names = [node.name.rpartition(".")[2] for node in nodes]
    with_model = [i for i, name in enumerate(names) if _title(name) and name != "judge_answers"]
    last = max(with_model, default=-1)
    titles: list[str] = []
    for i, name in enumerate(names):
        after = i > last and (last >= 0 or re.match(r"tabulate|draw|combine|check|compare", name))
        before = titles[-1] if titles and i <= last else _INPUTS
        title = _REPORT if name == "write_report" else _title(name)
        titles.append(title or (_TABLES if after else before))
    grouped: dict[str, list[str]] = {}
    for title, node in zip(titles, nodes, strict=True):
        grouped.setdefault(title, []).append(node.name)
    return [
        Stage(
            title,
            tuple(names),
            sum(seconds[name] for name in names) if set(names) <= seconds.keys() else None,
        )
        for title, names in grouped.items()
    ]


def _title(node: str) -> str | None:
    for pattern, words in _STAGES.items():
        if found := re.fullmatch(pattern, node):
            return words.format(*found.groups())
    return None


def seconds_taken(folder: Path, nodes: Sequence[str]) -> tuple[dict[str, float], str]:
    """Return how long nodes took when they last finished here, and in which run most did.

    Args:
        folder: the records of this run's nodes, RUN/EXPERIMENT/node_records; those of other runs
            stand beside it.
        nodes: their names within the experiment.
    """
    found: dict[str, float] = {}
    runs: list[str] = []
    alike = folder.parents[2].glob(f"*/{folder.parent.name}/{folder.name}")
    known = [(path, other.parents[1].name) for other in alike for path in other.glob("*.json")]
    latest: dict[str, tuple[Any, float, str]] = {}
    for path, run in known:
        if path.stem not in nodes:
            continue
        try:
            record = NodeRecord.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        last = record.attempts[-1]
        if last.outcome == "finished" and last.seconds is not None:
            latest[path.stem] = max(
                latest.get(path.stem, (last.started, 0.0, "")), (last.started, record.seconds, run)
            )
    for name, (_, seconds, run) in latest.items():
        found[name] = seconds
        runs.append(run)
    return found, max(set(runs), key=runs.count) if runs else ""


def announcement(what: str, stages: Sequence[Stage], run: str, experiment: str) -> str:
    """Return the line that says what will run and about how long.

    Args:
        what: the experiment and the run, in words.
        stages: of what will run.
        run: the run that took the times of the stages.
        experiment: its name.
    """
    steps = sum(len(stage.nodes) for stage in stages)
    text = f"{what}: {steps} nodes in {len(stages)} stages"
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    if stages and len(known) == len(stages):
        return f"{text}, about {about(sum(known))}, as the run {run} took here"
    listed = experiments().get(experiment)
    if listed and (minutes := listed.measured_minutes):
        return (
            f"{text}; how long is not known yet, since they have not run here (the default took "
            f"{minutes[0]} to {minutes[1]} minutes on two cores)"
        )
    return f"{text}; how long is not known yet, since they have not run here"


def about(seconds: float) -> str:
    """Return a duration as an estimate: to the minute, or the second below one."""
    return f"{max(1, round(seconds))} s" if seconds < 60 else duration(60 * round(seconds / 60))


def line(stage: Stage, number: int, of: int) -> str:
    """Return what is said when a stage begins."""
    time = (
        f", about {about(stage.seconds)}"
        if stage.seconds is not None and stage.seconds >= 1
        else ""
    )
    return f"{number} of {of}: {stage.title}{time}"


def written(outputs: Mapping[str, Any]) -> list[str]:
    """Return two texts that a node's models have just written for one query, as lines to print.

    Args:
        outputs: of the node, by name. Responses, answers and attempts are shown; others are not.
    """
    for name, table in outputs.items():
        if not isinstance(table, pd.DataFrame) or table.empty:
            continue
        kind = name.rpartition(".")[2]
        if kind == "generations" or kind.endswith("held_out_responses"):
            return _under_each_constitution(table, "query_id", "response")
        if kind.endswith("_answers") and {"question_id", "answer"} <= set(table):
            return _under_each_constitution(table, "question_id", "answer")
        if kind.endswith("_attempts") and {"problem_id", "text"} <= set(table):
            rows = table.head(2).to_dict("records")
            return [
                _short(f"{'right' if row.get('correct') else 'wrong'}: {row['text']}")
                for row in rows
            ]
    return []


def _under_each_constitution(table: pd.DataFrame, key: str, text: str) -> list[str]:
    if "constitution" not in table or text not in table:
        return []
    asked = table[table["constitution"].isin(list(_SIDES))]
    if "turn" in asked:
        asked = asked[asked["turn"] == 1]
    counts = asked.groupby(key, sort=False)["constitution"].nunique()
    if counts.empty:
        return []
    # The first one whose answers came to an end, if there is one.
    ended = asked.get("finish_reason", pd.Series("stop", asked.index)) != "length"
    whole = ended.groupby(asked[key], sort=False).all() & (counts == counts.max())
    chosen = (whole[whole].index if whole.any() else counts.index)[0]
    rows = asked[asked[key] == chosen].drop_duplicates("constitution")
    rows = rows.sort_values("constitution", ascending=False, kind="stable").to_dict("records")
    lines = [_short(f"{chosen}: {rows[0]['query']}")] if "query" in table else []
    for row in rows:
        principles = ", ".join(label(name) for name, _ in json.loads(row.get("stances") or "[]"))
        asked_for = f"asked for {_SIDES[row['constitution']]} {principles}".rstrip()
        lines.append(_short(f"{asked_for}: {row[text] or '(nothing)'}"))
    return lines if "query" in table else [f"{chosen}, {each}" for each in lines]


def _short(text: str) -> str:
    whole = " ".join(text.split())
    return whole if len(whole) <= _SHOWN_CHARACTERS else whole[: _SHOWN_CHARACTERS - 1] + "…"
