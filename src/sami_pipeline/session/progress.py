"""What a run says while it runs: what will run, each stage with its place, and what models write.

A stage is a node in which a model is trained, writes or judges; what is read before the first of
them, the tables and figures after the last, and the report are one stage each. Nodes in between
that take a moment belong to the stage before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.pipeline.node import Node

from sami_pipeline.figures import label
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
# Seconds from which a stage is said to take some.
_LONG = 5
_MB, _GB = 1e6, 1e9
_SIDES = {"desired": "the principle", "contrasting": "the opposite of"}


@dataclass(frozen=True)
class Stage:
    """Nodes that are told of together.

    Attributes:
        title: what happens.
        nodes: their names.
    """

    title: str
    nodes: tuple[str, ...]


def stages_of(nodes: Sequence[Node]) -> list[Stage]:
    """Return the stages of the nodes that will run, in their order."""
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
    return [Stage(title, tuple(names)) for title, names in grouped.items()]


def _title(node: str) -> str | None:
    for pattern, words in _STAGES.items():
        if found := re.fullmatch(pattern, node):
            return words.format(*found.groups())
    return None


def announcement(what: str, stages: Sequence[Stage], seconds: float | None, origin: str) -> str:
    """Return the line that says what will run and about how long.

    Args:
        what: the experiment and the run, in words.
        stages: of what will run.
        seconds: how long they will take; None if that is not known.
        origin: what the time was taken from, in words.
    """
    steps = sum(len(stage.nodes) for stage in stages)
    text = f"{what}: {steps} nodes in {len(stages)} stages"
    if seconds is None:
        return f"{text}; how long is known when stages of each kind have run here"
    return f"{text}, about {about(seconds)}, until about {clock(seconds)} ({origin})"


def needs(memory: int | None, disk: int | None, run: str) -> str:
    """Return the line that says what memory and disk an earlier run took.

    Args:
        memory: the most resident memory of a process of it, in bytes; None if that is not known.
        disk: what it has left, in bytes.
        run: its name; "" where the experiment has not run here.
    """
    if not run:
        return "It has not run here: --params dry_run=true says what memory and disk it takes"
    said = [f"took {_size(memory)} of memory at the most"] if memory else []
    said += [f"left {_size(disk)} on disk"] if disk else []
    return f"The run {run} {' and '.join(said)}" if said else ""


def took(seconds: float, memory: int | None, disk: int) -> str:
    """Return the line that says what a run took.

    Args:
        seconds: how long it took.
        memory: the most resident memory of a process of it, in bytes; None if that is not known.
        disk: bytes of what it and earlier runs of its name have left.
    """
    said = f"Finished in {duration(seconds)}"
    said += f", {_size(memory)} of memory at the most" if memory else ""
    return said + (f"; it leaves {_size(disk)} on disk" if disk else "")


def _size(count: float) -> str:
    return f"{count / _GB:.1f} GB" if count >= _GB / 10 else f"{max(1, round(count / _MB))} MB"


def disk_used(folders: Iterable[Path]) -> int:
    """Return the bytes of the files in folders; one that has several names counts once."""
    sizes = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def clock(seconds: float) -> str:
    """Return the time of day in so many seconds, with the day if it is another one."""
    now = datetime.now().astimezone()
    then = now + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%a %d %b, %H:%M}"


def about(seconds: float) -> str:
    """Return a duration as an estimate: to the minute, or the second below two."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else duration(60 * minutes)


def line(stage: Stage, number: int, of: int, seconds: float | None, left: float | None) -> str:
    """Return what is said when a stage begins.

    Args:
        stage: that begins.
        number: its place, from 1.
        of: how many there are.
        seconds: how long it will take; None if that is not known.
        left: how long the whole run still takes, this stage included.
    """
    said = f"{number} of {of}: {stage.title}"
    if seconds is not None and seconds >= _LONG:
        said += f", about {about(seconds)}"
        if left is not None:
            said += f"; the run ends about {clock(left)}"
    return said


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
