"""A run that is killed anywhere and started again ends as one that was not.

A run is killed by SIGKILL, with all its processes, at seeded moments in every stage: some time
after a node has begun, or just before one of the changes that it makes to files. Each time it is
started again as the documentation says, and at the end every file is compared with those of a run
that was left alone.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

DYING = Path(__file__).with_name("dying_kedro.py")
# The first pattern that a node's name meets says in which stage it is.
STAGES = {
    "figures": r"draw_|write_report",
    "ingest": r"import_|tidy_|build_|collect_problems",
    "generation": r"constitute_queries|write_responses|copy_solutions|prepare_|measure_teacher",
    "training": r"train_|combine_history|combine_held_out$",
    "answering": r"constitute_questions|answer_as|respond_as|attempt_as|combine_(answers|attempts)",
    "judging": r"check_|judge_|ask_judge|decide_|combine_verdicts|tabulate_",
}
# Enough steps to be killed between.
EPOCHS = 3
# What two runs can't have in common, and where it is told apart from what they must.
TIMED = ["tokens_per_second", "peak_memory_bytes"]  # columns of the histories


def stage_of(node: str) -> str:
    """Return the stage of a node, by its name without the pipeline that it folds into."""
    return next(stage for stage, pattern in STAGES.items() if re.match(pattern, node))


@dataclass(frozen=True)
class Moment:
    """When a run is to be killed.

    Attributes:
        node: after it has begun.
        how: as ``dying_kedro.py`` reads it.
        amount: seconds or file changes.
        where: part of the paths whose changes count; empty for all of the run.
    """

    node: str
    how: str
    amount: float
    where: str = ""


@dataclass
class Launch:
    """One time that the run was started.

    Attributes:
        nodes: those that began, in their order.
        finished: those that came to their end.
        killed: whether it was killed.
        log: what it printed to stderr.
    """

    nodes: list[str]
    finished: list[str]
    killed: bool
    log: str


@dataclass
class KilledRun:
    """A run that is killed and goes on until it is finished.

    Attributes:
        project: the project's folder.
        experiment: mt_bench or math.
        name: the run's.
        launches: what has happened so far.
    """

    project: Path
    experiment: str
    name: str
    launches: list[Launch] = field(default_factory=list)

    def launch(self, moment: Moment | None) -> Launch:
        """Start the run, or let it go on, until it is killed or finished.

        Args:
            moment: when it is killed; None to let it finish.
        """
        arguments = [
            "run", "--env", "test", "--pipelines", self.experiment, "--only-missing-outputs",
            "--params", f"run_name={self.name},{self.experiment}.training.sami.epochs={EPOCHS}",
        ]  # fmt: skip
        command = (
            [sys.executable, "-m", "kedro", *arguments]
            if moment is None
            else [
                sys.executable, DYING, moment.node, moment.how, str(moment.amount),
                moment.where or self.name,
                *arguments,
            ]
        )  # fmt: skip
        ended = subprocess.run(
            command, cwd=self.project, start_new_session=True, capture_output=True, text=True,
            timeout=550, check=False,
            env=os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                              "KEDRO_LOGGING_CONFIG": "conf/logging_all.yml"},
        )  # fmt: skip
        killed = ended.returncode == -signal.SIGKILL
        assert killed or ended.returncode == 0, ended.stderr[-3000:]
        self.launches.append(
            Launch(
                re.findall(r" Running node: (\w+):", ended.stderr),
                re.findall(r" Completed node: \S*?(\w+)$", ended.stderr, re.MULTILINE),
                killed,
                ended.stderr,
            )
        )
        return self.launches[-1]

    @property
    def folders(self) -> dict[str, Path]:
        """The run's folder in each layer."""
        layers = (self.project / "data").glob(f"0[2-8]_*/{self.name}/{self.experiment}")
        return {path.parent.parent.name: path for path in layers}

    def saved_steps(self) -> dict[str, int]:
        """Return the step of the last whole training state of each model."""
        models = self.folders.get("06_models", Path("nowhere"))
        found: dict[str, int] = {}
        for state in models.glob("*_training_state/*"):
            if number := re.search(r"^step-(\d+)$", state.name):
                model = state.parent.name.removesuffix("_training_state")
                found[model] = max(found.get(model, 0), int(number[1]))
        return found

    def completions(self) -> list[str]:
        """Return the key of every stored completion, as often as it is stored."""
        folder = self.folders.get("07_model_output", Path("nowhere")) / "completions"
        return [
            key
            for path in folder.glob("*.jsonl")
            for line in path.read_text("utf-8").splitlines(keepends=True)
            if line.endswith("\n")
            for key in json.loads(line)
        ]

    def contents(self) -> dict[str, Any]:
        """Return everything that the run left, by layer and path, as far as two runs must agree.

        What they can't agree on, since it tells of the machine and the moment:

        * the histories' columns of speed and memory, in tables, states and the report;
        * when and how long nodes ran, in ``node_records``, ``run_record.json`` and the report;
        * the lock's holder, and the sizes in ``provenance`` of files with such values;
        * the names of the files of completions, and their order;
        * of training states, all but the weights of the last: the others are taken away or hold
          the histories.
        """
        found: dict[str, Any] = {"completions": sorted(self.completions())}
        for layer, folder in self.folders.items():
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = f"{layer}/{path.relative_to(folder)}"
                in_state = "_training_state/" in name
                if (
                    "/completions/" in name
                    or "/node_records/" in name
                    or name.split("/")[-1] in ("lock", "lock.holder")
                    or (in_state and path.suffix != ".safetensors")
                    or path.name == "optimiser.safetensors"
                ):
                    continue
                found[name] = self._content(path)
        return found

    def _content(self, path: Path) -> Any:
        if path.suffix == ".parquet":
            return pd.read_parquet(path).drop(columns=TIMED, errors="ignore")
        if path.suffix == ".safetensors":
            return load_file(path)
        text = path.read_bytes().decode("utf-8").replace(self.name, "RUN")
        if path.parent.name == "provenance":
            return json.loads(text)["origin"]
        if path.name == "run_record.json":
            return json.loads(text) | {"nodes": None}
        if path.name == "report.html":
            # The sections on training and on what was run are its last.
            text = re.sub(r'<section id="training">.*</main>', "", text, flags=re.DOTALL)
        return text


def assert_same(one: Any, other: Any, name: str) -> None:
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True, obj=name)
    elif isinstance(one, dict) and any(isinstance(each, torch.Tensor) for each in one.values()):
        assert one.keys() == other.keys(), name
        assert all(torch.equal(one[key], other[key]) for key in one), name
    else:
        assert one == other, name


@dataclass(frozen=True)
class Whole:
    """A run that was left alone, with how long each of its nodes took."""

    run: KilledRun
    contents: dict[str, Any]
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def whole(project_folder, run_name) -> Callable[[str], Whole]:
    """Return a function that gives the run of an experiment that was left alone."""
    runs: dict[str, Whole] = {}

    def of(experiment: str) -> Whole:
        if experiment not in runs:
            run = KilledRun(project_folder, experiment, run_name())
            order = run.launch(None).nodes
            records = (run.folders["08_reporting"] / "node_records").glob("*.json")
            seconds = {
                path.stem.split(".")[-1]: json.loads(path.read_text())["attempts"][-1]["seconds"]
                for path in records
            }
            assert sorted(seconds) == sorted(order)
            runs[experiment] = Whole(run, run.contents(), {node: seconds[node] for node in order})
        return runs[experiment]

    return of


def moments(seconds: dict[str, float], kills: dict[str, int], seed: int) -> Iterator[Moment]:
    """Yield seeded moments, as many in each stage as asked, in the order of the nodes.

    Half of them fall in the time of a node, a long one more often, and half at a change that a node
    makes to files, each node as often as any; in training at a change to its saved states.
    """
    chance = random.Random(seed)
    order = list(seconds)
    chosen: list[Moment] = []
    for stage, count in kills.items():
        training = stage == "training"
        nodes = [node for node in order if stage_of(node) == stage]
        nodes = [node for node in nodes if not training or node.startswith("train_")]
        for number in range(count):
            if number % 2 == training:
                (node,) = chance.choices(nodes, [seconds[node] + 0.01 for node in nodes])
                chosen.append(Moment(node, "after-seconds", chance.uniform(0, seconds[node])))
                continue
            node = chance.choice(nodes)
            states = f"{node.removeprefix('train_')}_training_state" if training else ""
            amount = chance.randint(1, 24 if training else 12)
            chosen.append(Moment(node, "at-file-change", amount, states))
    yield from sorted(chosen, key=lambda moment: order.index(moment.node))


def still_to_come(moment: Moment, order: list[str], run: KilledRun) -> Moment | None:
    """Return a moment in the same stage whose node has not finished, or None if all have."""
    finished = {node for launch in run.launches for node in launch.finished}
    if moment.node not in finished:
        return moment
    stage = stage_of(moment.node)
    left = [node for node in order if node not in finished and stage_of(node) == stage]
    return replace(moment, node=left[0], where="") if left else None


def killed_and_finished(
    whole: Whole, name: str, kills: dict[str, int], seed: int, tell: Callable[[str], None]
) -> tuple[Counter[str], int]:
    """Kill a run at seeded moments, let it finish, and compare it with the one left alone.

    Returns the kills survived by stage, and how many trainings went on from a saved state.
    """
    run = KilledRun(whole.run.project, whole.run.experiment, name)
    order = list(whole.seconds)
    survived: Counter[str] = Counter()
    resumed = stored = 0
    for planned in [*moments(whole.seconds, kills, seed), None]:
        moment = None if planned is None else still_to_come(planned, order, run)
        if planned is not None and moment is None:
            continue
        steps, before = run.saved_steps(), run.completions()
        launch = run.launch(moment)
        if launch.killed:
            survived[stage_of(launch.nodes[-1])] += 1
        # Training goes on after the last state that was saved, and nothing stored is asked again.
        went_on = steps_gone_on_from(launch.log)
        assert went_on.items() <= steps.items()
        for model in steps:
            assert model in went_on or f"train_{model}" not in launch.finished
        resumed += len(went_on)
        after = Counter(run.completions())
        assert max(after.values(), default=1) == 1, "a stored completion was asked again"
        assert set(before) <= set(after)
        stored = len(after)
        if not launch.killed:
            break
    assert not run.launches[-1].killed
    again = nodes_run_again(run.launches)
    contents = run.contents()
    assert contents.keys() == whole.contents.keys()
    for key in contents:
        assert_same(whole.contents[key], contents[key], key)
    tell(
        f"{run.experiment}: {survived.total()} kills survived "
        f"({', '.join(f'{stage} {count}' for stage, count in sorted(survived.items()))}); "
        f"{len(contents)} files and the {stored} completions equal; nodes begun again {again} "
        f"times, each the one in hand; {resumed} trainings went on from their last state"
    )
    return survived, resumed


def steps_gone_on_from(log: str) -> dict[str, int]:
    """Return the step after which each training went on, from what it logs."""
    found: dict[str, int] = {}
    for line in re.findall(r"Going on after step.*", log):
        model = re.search(r"(\w+)_training_state", line)[1]
        found[model] = int(re.search(r"after step (\d+)", line)[1])
    return found


def nodes_run_again(launches: list[Launch]) -> int:
    """Return how often nodes were begun again; only the one that a kill fell in may be."""
    finished: set[str] = set()
    begun: Counter[str] = Counter()
    for launch in launches:
        repeated = finished & set(launch.nodes)
        assert not repeated, "finished nodes were run again"
        finished |= set(launch.finished)
        begun.update(launch.nodes)
        assert len(launch.nodes) - len(launch.finished) <= 1
    return sum(count - 1 for count in begun.values())


def test_a_run_that_is_killed_goes_on_and_ends_as_one_that_was_not(whole, run_name, tell):
    kills = {"generation": 1, "training": 1, "judging": 1}
    survived, resumed = killed_and_finished(whole("mt_bench"), run_name(), kills, 4, tell)
    assert survived.total() == 3
    assert resumed >= 1, "no training was killed after its first state"


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("experiment", "each", "seed"), [("mt_bench", 4, 2), ("math", 3, 3)])
def test_runs_survive_kills_in_every_stage(experiment, each, seed, whole, run_name, tell):
    kills = dict.fromkeys(STAGES, each)
    survived, resumed = killed_and_finished(whole(experiment), run_name(), kills, seed, tell)
    assert resumed >= 1, "no training was killed after its first state"
    # A stage may have ended before all of its moments come, and the run before its last ones.
    assert survived.total() >= 0.8 * sum(kills.values())
    assert set(survived) == set(STAGES)
