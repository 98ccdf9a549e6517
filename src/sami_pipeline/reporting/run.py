"""What was run: models, data, parameters, tokens, time and what it ran on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sami_pipeline.engines.kinds import engine_kinds
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.parameters import (
    HOSTED,
    ITERATION_MODEL,
    WORKED_SOLUTIONS,
    ExperimentParameters,
)
from sami_pipeline.reporting.headlines import as_data, cards
from sami_pipeline.reporting.record import Environment, NodeRecord
from sami_pipeline.training.baselines.registry import baselines

# More different values than these are only counted.
_NAMED_COUNTS = 12
# Where tables count tokens: what was written ("" is what the experiment calls its answers), the
# column that names who wrote it, and the group of parameters with the engine, where that may be a
# server.
_TOKENS = {
    "generations": ("Training responses", None, "generation"),
    "answers": ("", "model", None),
    "attempts": ("", "model", None),
    "held_out_responses": ("Responses to held-out queries", "model", None),
    "judgements": ("Judgements", "judge_model", "judge"),
}
_HELD_OUT = "held_out_responses"


@dataclass(frozen=True)
class Subject:
    """How a report speaks of an experiment.

    Attributes:
        title: its name for readers.
        answers: what the models under test wrote, such as "Answers to MT-Bench".
        questions: what the rows of ``questions`` are called where they are counted; "" for an
            experiment that has none.
        browser: makes what the browser of answers shows of the tables by name, the baseline's name
            and how many questions of each category are shown (None is all); see ``answers``.
    """

    title: str
    answers: str
    questions: str
    browser: Callable[[Mapping[str, pd.DataFrame], str, int | None], dict[str, Any]]


@dataclass(frozen=True)
class RunDescription:
    """What was run, besides the tables that came out.

    Attributes:
        experiment: its name in the catalog.
        subject: how the report speaks of it.
        run: the run's name.
        parameters: all parameters, those left at their default too.
        models: each model's name, role and source.
        nodes: names of the experiment's nodes, in their order.
        records: what is known of the nodes that have run.
        drawn: all models that figures may show, in the order that gives them their colours; see
            ``figures.model_colours``.
    """

    experiment: str
    subject: Subject
    run: str
    parameters: Mapping[str, Any]
    models: Sequence[Mapping[str, str]]
    nodes: Sequence[str]
    records: Sequence[NodeRecord]
    drawn: Sequence[str] = ()

    def to_json(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        """Return the same for other programs to read."""
        return {
            "experiment": self.experiment,
            "run": self.run,
            "parameters": dict(self.parameters),
            "models": [dict(model) for model in self.models],
            "tokens": tokens(self, tables),
            "outcome": as_data(cards(tables)),
            "nodes": [record.model_dump(mode="json") for record in self.records],
            "nodes_without_record": self.without_record,
        }

    @property
    def title(self) -> str:
        """The experiment's name for readers."""
        return self.subject.title

    @property
    def without_record(self) -> list[str]:
        """Names of the nodes of which nothing is recorded."""
        known = {record.node for record in self.records}
        return [node for node in self.nodes if node not in known]

    def teacher_in(self, iteration: str | None) -> str:
        """Return who wrote the training responses of an earlier iteration, or of the last."""
        count = self.parameters["iterations"]["count"]
        number = count if iteration is None else int(iteration.rpartition("_")[2])
        return (
            self.parameters["models"]["teacher"]
            if number == 1
            else f"{ITERATION_MODEL}{number - 1}"
        )

    def server_of(self, group: str) -> Mapping[str, Any] | None:
        """Return the settings of the server that a group's engine asks, or None for no server."""
        settings: Any = self.parameters
        for name in group.split("."):
            settings = settings[name]
        engine = settings["engine"]
        return engine[engine["kind"]] if engine_kinds()[engine["kind"]].asks_server else None

    @property
    def seeds(self) -> dict[str, Any]:
        """Every seed, by its parameter's full name."""
        flat = flattened(self.parameters)
        return {name: value for name, value in flat.items() if name.split(".")[-1] == "seed"}

    @property
    def environments(self) -> list[tuple[Environment, list[NodeRecord]]]:
        """What the nodes ran on, each with the nodes that did so last."""
        found: dict[str, tuple[Environment, list[NodeRecord]]] = {}
        for record in self.records:
            environment = record.attempts[-1].environment
            key = environment.model_dump_json()
            found.setdefault(key, (environment, []))[1].append(record)
        return list(found.values())

    @property
    def commands(self) -> list[tuple[datetime, str, int]]:
        """When each run began its first node here, what it was asked for, and its nodes."""
        found: dict[str, list] = {}
        for record in self.records:
            for attempt in record.attempts:
                began = found.setdefault(attempt.run, [attempt.started, attempt.command, 0])
                began[0] = min(began[0], attempt.started)
                began[2] += 1
        return [
            (
                started,
                ", ".join(f"{name} = {value}" for name, value in flattened(command).items()),
                n,
            )
            for started, command, n in sorted(found.values(), key=lambda began: began[0])
        ]

    @property
    def seconds(self) -> float:
        """How long all nodes took together."""
        return sum(record.seconds for record in self.records)


_SAMI = "SAMI: taught to tell which response was written under which constitution"


def in_words(description: RunDescription) -> list[tuple[str, str]]:
    """Return each model under test with how it was made, for readers who see its name only.

    Of models that nobody made here (published answers), their source is what is known.
    """
    models, known = description.parameters.get("models"), baselines()
    if models is None:
        return [(model["name"], model["source"]) for model in description.models]
    found = []
    for name in models["under_test"]:
        if name in models["sources"]:
            words = "not trained here"
        else:
            samis = name not in known or known[name].is_sami  # such as an earlier iteration's
            words = _SAMI if samis else known[name].words
            start = known[name].starts_from if name in known else ""
            words += f"; starts from {start or models['student']}"
        if name == models["baseline"]:
            words += "; the baseline, which the others are compared with"
        found.append((name, words))
    return found


def describe_models(
    experiment: ExperimentParameters, checkpoints: Mapping[str, Checkpoint]
) -> list[dict[str, str]]:
    """Return each model's name, its roles, and where it comes from.

    Args:
        experiment: names the models' sources and roles.
        checkpoints: by ``<model>_checkpoint``; what they say of their making is added.
    """
    models = experiment.models
    holders = {"teacher": models.teacher, "student": models.student, "baseline": models.baseline}
    servers = {HOSTED: experiment.generation.engine.settings}
    judged = getattr(experiment, "judge", None)
    for place, judge in (judged.by_place if judged is not None else {}).items():
        holders["second judge" if "." in place else "judge"] = judge.judge_model
        if judge.model is None:
            servers[judge.judge_model] = judge.engine.settings
    described = []
    for model in dict.fromkeys([*models.sources, *holders.values(), *models.under_test]):
        roles = [role for role, holder in holders.items() if holder == model]
        roles += ["under test"] if model in models.under_test else []
        trained = experiment.replicates(model)
        if len(trained) > 1:
            roles.append(f"training seeds {', '.join(map(str, trained.values()))}")
        checkpoint = checkpoints.get(f"{model}_checkpoint")
        made = checkpoint.provenance if checkpoint else {}
        if server := servers.get(model):
            source = f"{server.model} at {getattr(server, 'base_url', 'its server')}"
        elif model == WORKED_SOLUTIONS:
            source = "the problems' own solutions, copied"
        elif model in models.sources:
            source = "{0.kind}:{0.location}".format(models.sources[model])
            if models.sources[model].kind == "hub" and made:
                # A hub's snapshot folder is named by the commit that was fetched.
                source += f", commit {Path(made['source']).name}"
        else:
            facts = {key: value for key, value in made.items() if not isinstance(value, Mapping)}
            source = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts.items())
        described.append({"name": model, "role": ", ".join(roles), "source": source or "not known"})
    return described


def tokens(description: RunDescription, tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return how many tokens were read and written, by purpose and model, and what a server's cost.

    Args:
        description: says who taught, and the prices.
        tables: by name; those of earlier iterations have names such as ``iteration_1.generations``.

    Returns:
        ``purpose, model, texts, prompt_tokens, completion_tokens, served, cost``; cost is in the
        currency of the prices, None where nobody was paid or no prices are given.
    """
    rows = []
    for name, table in tables.items():
        *iteration, kind = name.split(".")
        kind = _HELD_OUT if kind.endswith(_HELD_OUT) else kind
        if kind not in _TOKENS or table.empty:
            continue
        purpose, column, group = _TOKENS[kind]
        purpose = purpose or description.subject.answers
        if column is None:
            teacher = description.teacher_in(iteration[0] if iteration else None)
            parts = [(teacher, table)]
        elif kind == "judgements":
            parts = [
                (names[1], part) for names, part in table.groupby(["judge", column], sort=False)
            ]
        else:
            parts = list(table.groupby(column, sort=False))
        for model, part in parts:
            if kind == "judgements":
                second = part["judge"].iloc[0].startswith("second_")
                group = "judge.second" if second else "judge"
                purpose = "Judgements of the second judge" if second else "Judgements"
            # Of published answers only the completions are known.
            read, written = (
                0
                if model == WORKED_SOLUTIONS or f"{which}_tokens" not in part
                else int(part[f"{which}_tokens"].sum())
                for which in ("prompt", "completion")
            )
            by_teacher = group == "generation" and model != HOSTED
            server = None if group is None or by_teacher else description.server_of(group)
            rows.append(
                {
                    "purpose": ", ".join([purpose, *iteration]).replace("_", " "),
                    "model": model,
                    "texts": len(part),
                    "prompt_tokens": read,
                    "completion_tokens": written,
                    "served": server is not None,
                    "cost": _cost(server, read, written),
                }
            )
    return rows


def _cost(server: Mapping[str, Any] | None, read: int, written: int) -> float | None:
    if server is None or server.get("prompt_price") is None:
        return None
    return (read * server["prompt_price"] + written * server["completion_price"]) / 1e6


def data(subject: Subject, tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """Return what was asked and trained on, as pairs of a name and counts."""
    rows = []
    if "answers" in tables:
        asked = tables["answers"].drop_duplicates("question_id")
        rows.append((subject.questions, _counts(asked["category"])))
    if "problems" in tables:
        problems = tables["problems"]
        rows.append(("Problems", _counts(problems["split"])))
        tested = problems.loc[problems["split"] == "test", "problem_id"].str.rsplit("-", n=1).str[0]
        seen = ", which models may have been trained on" if "gsm8k-train" in set(tested) else ""
        rows.append(("Test problems by source", _counts(tested) + seen))
    if "generations" in tables:
        queries = tables["generations"].drop_duplicates("query_id")
        rows.append(("Training queries by split", _counts(queries["split"])))
        rows.append(("Training queries by category", _counts(queries["category"])))
        rows.append(("Training queries by source", _counts(queries["source"])))
    return rows


def judges(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, dict[str, int]]]:
    """Return how many verdicts of each kind every judge gave."""
    if "verdicts" not in tables or tables["verdicts"].empty:
        return []
    by = tables["verdicts"].groupby("judge", sort=False)["winner"]
    return [(judge, winners.value_counts().to_dict()) for judge, winners in by]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their full name, the parts joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def duration(seconds: float) -> str:
    """Return a duration as people write it, such as "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def moment(time: datetime) -> str:
    """Return a time in UTC, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def gibibytes(number: int | None) -> str:
    """Return a size in GiB."""
    return "unknown" if number is None else f"{number / 2**30:.1f} GiB"


def _counts(values: pd.Series) -> str:
    counts = values.value_counts(sort=False)
    if len(counts) > _NAMED_COUNTS:
        return f"{counts.sum()} from {len(counts)} sources"
    parts = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{counts.sum()} ({parts})"
