"""Time told before a run and before each stage, held against runs that were timed.

The seconds are those of two real runs of the embedded experiment on two cores that other work
shared, as their records have them (2026-11-26).
"""

from datetime import UTC, datetime

import pandas as pd
import pytest
import yaml

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.reporting.record import Attempt, NodeRecord, RunRecord, Work, environment
from sami_pipeline.session import estimates
from sami_pipeline.session.estimates import Estimates, Measured
from sami_pipeline.session.experiments import experiment_parameters
from sami_pipeline.session.order import in_order

pytestmark = [
    pytest.mark.filterwarnings("ignore:register_new_resolver"),
    pytest.mark.filterwarnings("ignore:One or more dataset names contain"),
]
RAW = PROJECT_FOLDER / "data" / "01_raw"
PROMPTS = ("generation_prompt", "training_prompt", "evaluation_prompt")
# Of 168 grids for training 102 were usable, their responses of 48 tokens on average.
GRIDS, RESPONSE_TOKENS = 102, 48
SECONDS = {
    "import_base": 18.7, "write_responses": 201.7, "train_sft": 193.7, "train_sft_sami": 278.8,
    "respond_as_sft_sami": 33.3, "answer_as_base": 104.2, "respond_as_base": 34.7,
    "train_sft_dpo": 413.8, "answer_as_sft": 89.0, "respond_as_sft": 34.5,
    "answer_as_sft_dpo": 96.8, "answer_as_sft_sami": 89.8, "respond_as_sft_dpo": 34.3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _base_environment(monkeypatch):
    """Take conf/base, whatever an earlier test has activated."""
    monkeypatch.setattr("sami_pipeline.session.experiments._active_parameters", None)


def responses(grids: int, tokens: float) -> pd.DataFrame:
    rows = pd.DataFrame({"query_id": [str(n) for n in range(grids) for _ in range(2)]})
    return rows.assign(grid=0, split="train", status="usable", completion_tokens=tokens)


def counts(experiment: str, found: pd.DataFrame | None = None, **changes) -> dict[str, Work]:
    parameters = experiment_parameters(experiment).model_copy(update=changes)
    files = (RAW / "principles").glob("*.yml")
    principles = tabulate_principles({f.name: yaml.safe_load(f.read_text("utf-8")) for f in files})
    template = yaml.safe_load((RAW / "prompt_templates" / "chat.yml").read_text("utf-8"))
    return estimates.count_work(
        parameters,
        experiments()[experiment].workload(parameters, principles),
        principles,
        {name: PromptTemplate.parse(template, name) for name in PROMPTS},
        found,
    )


def counts_then(found: pd.DataFrame | None = None, **changes) -> dict[str, Work]:
    """Return the work as it was in the run: TRL trained SFT, on rows that it padded."""
    work = counts("mt_bench", found, **changes)
    padded = work["train_sft"].model_copy(update={"tokens": 1.3 * work["train_sft"].tokens})
    return work | {"train_sft": padded}


@pytest.mark.parametrize("experiment", ["mt_bench", "math", "align"])
def test_every_node_with_a_model_in_it_is_counted(experiment):
    nodes = in_order(experiments()[experiment].pipeline(experiment_parameters(experiment)))
    names = {node.name.rpartition(".")[2] for node in nodes}
    heavy = ("write_responses", "train_", "answer_as", "attempt_as", "respond_as", "ask_")
    assert counts(experiment).keys() & names == {n for n in names if n.startswith(heavy)}


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_each_stage_of_a_real_run_is_told_right_within_a_third(speed):
    """Of stages after the first; the machine is as fast as a test of it said, half, or twice."""
    parameters = experiment_parameters("mt_bench")
    # SAMI kept near its start by a KL term has another model to compute; that run had none.
    training = parameters.training
    plain = training.model_copy(update={"sami": training.sami.replaced(kl_beta=0.0)})
    times = Estimates(work=counts_then(training=plain), sources=estimates.known_models(parameters))
    times._rate = estimates.RATE * speed
    graph = in_order(experiments()["mt_bench"].pipeline(parameters))
    left = [name for node in graph if (name := node.name.rpartition(".")[2]) in SECONDS]
    assert len(left) == len(SECONDS)
    whole, done, off = sum(SECONDS.values()), 0.0, {}
    if speed == 1:
        assert times.total(left) == pytest.approx(whole, rel=1 / 3)
        assert times.origin(left) == "by a short test of this machine"
    while left:
        node = left.pop(0)
        told, took = times.seconds(node), SECONDS[node]
        off[node] = told / took - 1
        rest = told + times.total(left)
        if node not in ("import_base", "write_responses"):
            assert done + rest == pytest.approx(whole, rel=1 / 3), node
            if node != "train_sft_dpo":  # TRL trained it then
                assert told == pytest.approx(took, rel=1 / 3), node
        times.end(node, took)
        done += took
        if node == "write_responses":
            times.work |= counts_then(responses(GRIDS, RESPONSE_TOKENS), training=plain)
    assert max(map(abs, off.values())) > 0.01, "a real run is never as foreseen"


def test_what_ran_here_is_scaled_by_its_work_and_corrected_by_what_has_ended():
    work = Work(kind="writing", by="m, transformers", tokens=1000)
    more, other = (work.model_copy(update=change) for change in ({"tokens": 3000}, {"by": "n"}))
    times = Estimates(
        work={"a": more, "b": more, "c": other},
        before={"a": Measured(10.0, work), "tabulate": Measured(4.0), "c": Measured(10.0, work)},
        counted=[Measured(10.0, work), Measured(20.0, work)],
    )
    assert times.seconds("a") == 30 and times.seconds("b") == 45 and times.seconds("tabulate") == 4
    assert times.seconds("c") is None, "another model"
    assert times.total(["a", "tabulate"]) == 34 and times.total(["a", "c"]) is None
    assert times.origin(["a"]) == "as earlier here"
    assert times.origin(["a", "b"]) == "by the pace of earlier stages here"
    times.end("a", 60.0)
    assert times.seconds("b") == 90 and times.seconds("tabulate") == 4
    times.end("c", 7.0)
    assert times.seconds("c") == 7, "known from now on"


def test_what_another_run_made_and_what_goes_on_makes_nothing_else_faster():
    work = Work(kind="writing", by="m", tokens=1000)
    times = Estimates(
        work=dict.fromkeys("abc", work), counted=[Measured(10.0, work)], free={"c"}, begun={"a"}
    )
    times.end("a", 0.2)
    times.end("c", 0.01)
    assert times.seconds("b") == 10 and times.seconds("c") == 0


def test_records_of_other_machines_and_failed_attempts_do_not_count(tmp_path):
    own = tmp_path / "new" / "mt_bench" / "node_records"
    work = Work(kind="training", by="m", tokens=5)

    def write(run, experiment, node, day, seconds, **changes):
        attempt = Attempt(
            run=run, started=datetime(2026, 1, day, tzinfo=UTC), seconds=seconds,
            outcome="finished", environment=environment(), work=work, peak_memory_bytes=day,
        ).model_copy(update=changes)  # fmt: skip
        record = RunRecord(tmp_path / run / experiment / "node_records")
        record._write(NodeRecord(node=node, attempts=[attempt]))

    elsewhere = environment().model_copy(update={"processor": "another"})
    write("old", "mt_bench", "train", 1, 10.0)
    write("late", "mt_bench", "train", 2, 20.0)
    write("late", "mt_bench", "answer", 2, 5.0, work=None)
    write("faster", "mt_bench", "train", 3, 1.0, environment=elsewhere)
    write("failed", "mt_bench", "train", 4, 1.0, outcome="failed")
    write("late", "math", "train", 5, 30.0)
    known = estimates.earlier(own, ["train", "answer"])
    assert known.latest == {"train": Measured(20.0, work), "answer": Measured(5.0)}
    assert sorted(each.seconds for each in known.counted) == [10, 20, 30]
    assert (known.run, known.memory) == ("late", 2)
    assert estimates.earlier(own, ["other"]).run == ""


def test_a_test_of_the_machine_measures_matrix_products():
    import torch

    rate = estimates.product_rate(0.2)
    assert rate == 0 if torch.cuda.is_available() else 0.5 < rate < 100_000
