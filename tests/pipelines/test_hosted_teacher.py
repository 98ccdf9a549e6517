"""A teacher behind an endpoint: the graph, the parameters, and a whole run against a server."""

from pathlib import Path

import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader
from kedro.pipeline import Pipeline
from openai_server import MODEL, OpenAIServer, Sent, answers_of, error
from pydantic import ValidationError

from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.settings import CONFIG_LOADER_ARGS

KEY = "sk-test-9c02e7d4aa31"
EXPERIMENTS = experiments()
OPENAI = {"kind": "openai", "openai": {"base_url": "http://127.0.0.1:9/v1", "model": "x"}}
HOSTED = {"models": {"teacher": "hosted"}, "generation": {"engine": OPENAI}}
pytestmark = [
    pytest.mark.filterwarnings("ignore:register_new_resolver"),
    # Earlier iterations have a namespace of their own, which is meant.
    pytest.mark.filterwarnings("ignore:One or more dataset names"),
]


@pytest.fixture(scope="module")
def configured(project_folder) -> dict:
    loader = OmegaConfigLoader(str(project_folder / "conf"), env="test", **CONFIG_LOADER_ARGS)
    return loader["parameters"]


def pipeline_of(name: str, parameters: dict) -> Pipeline:
    experiment = EXPERIMENTS[name]
    return experiment.pipeline(experiment.parameters.model_validate(parameters))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_graph_has_no_teacher_model_where_the_teacher_is_hosted(configured, merged, experiment):
    pipeline = pipeline_of(experiment, merged(configured[experiment], HOSTED))
    (node,) = (each for each in pipeline.nodes if f"{experiment}.generations" in each.outputs)
    assert node.short_name.endswith("ask_hosted_teacher")
    assert not any(name.endswith("_checkpoint") for name in node.inputs)


def test_later_iterations_are_taught_by_the_model_that_was_trained(configured, merged):
    iterations = {"iterations": {"count": 2, "engine": {"kind": "transformers"}}}
    parameters = merged(configured["mt_bench"], HOSTED | iterations)
    pipeline = pipeline_of("mt_bench", parameters)
    first, second = (
        next(node for node in pipeline.nodes if f"mt_bench.{name}generations" in node.outputs)
        for name in ("iteration_1.", "")
    )
    assert first.short_name.endswith("ask_hosted_teacher")
    assert "mt_bench.iteration_1.sami_checkpoint" in second.inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"teacher": "hosted"}}, "'hosted' goes together with .* engine 'transformers'"),
        ({"generation": {"engine": OPENAI}}, "the teacher is 'base', the engine 'openai'"),
        (HOSTED | {"iterations": {"count": 2}}, r"iterations\.engine: missing"),
        (HOSTED | {"iterations": {"engine": OPENAI}}, "can't load models of this project"),
        ({"evaluation": {"engine": OPENAI}}, "can't load models of this project"),
        ({"models": {"sources": {"hosted": "random:1"}}}, "'hosted' has a special meaning"),
        ({"models": {"under_test": ["base", "hosted"]}}, "'hosted' can only teach"),
        ({"models": {"student": "hosted"}}, "student: 'hosted' has no source"),
    ],
)
def test_what_does_not_fit_together_is_named(configured, merged, changes, message):
    with pytest.raises(ValidationError, match=message):
        EXPERIMENTS["mt_bench"].parameters.model_validate(merged(configured["mt_bench"], changes))


@pytest.fixture
def conf(changed_conf, tmp_path) -> Path:
    """A copy of conf/ whose test environment holds a key and its own place for completions."""
    folder = {
        "type": "sami_pipeline.datasets.WorkingFolder",
        "filepath": str(tmp_path / "completions"),
    }
    changed_conf("catalog/completions.yml", {"{experiment}.completions": folder})
    return changed_conf("credentials.yml", {"openai": {"api_key": KEY}})


def test_run_with_a_hosted_teacher_that_stumbles(
    kedro_run, run_name, conf, random_checkpoint, project_folder
):
    model = TransformersEngine(random_checkpoint.folder, dtype="float32", batch_size=1)
    spoilt: list[str] = []

    def fault(sent: Sent):
        spoilt.extend([] if spoilt else [sent.text])
        if sent.text == spoilt[0]:
            return error(500, f"oops, {KEY}")
        return "rate limit" if len(server.sent) % 3 == 0 and not sent.retry else None

    def run(name: str, end: str):
        settings = {
            "run_name": name,
            "mt_bench.models.teacher": "hosted",
            "mt_bench.generation.engine.kind": "openai",
            "mt_bench.generation.engine.openai.base_url": server.url,
            "mt_bench.generation.engine.openai.model": MODEL,
            "mt_bench.generation.engine.openai.max_retries": "3",
            "mt_bench.generation.engine.openai.max_missing": "0.05",
        }
        params = ",".join(f"{key}={value}" for key, value in settings.items())
        return kedro_run(
            "--env", "test", "--conf-source", str(conf), "--params", params,
            "--to-outputs", f"mt_bench.{end}",
        )  # fmt: skip

    with OpenAIServer(answers_of(model), key=KEY, fault=fault) as server:
        name = run_name()
        # As far as the models under test answer the held-out queries, which no server can.
        finished = run(name, "held_out_lengths")
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert "31 answered, 1 failed (HTTP 500: 1)" in finished.stderr
        server.fault, sent = (lambda sent: None), len(server.sent)
        again = run(run_name(), "generations")
        assert again.returncode == 0, again.stderr[-3000:]
        assert len(server.sent) == sent + 1, "only what had failed is asked again"

    layers = {path.parent.name: path for path in (project_folder / "data").glob(f"*/{name}")}
    table = pd.read_parquet(layers["05_model_input"] / "mt_bench" / "responses.parquet")
    failed = table[table["finish_reason"] == "failed"]
    assert (len(table), len(failed)) == (32, 1)
    assert set(table["status"][table["query_id"].isin(failed["query_id"])]) == {"failed"}
    assert (layers["06_models"] / "mt_bench" / "sami").is_dir()

    for said in (finished.stdout, finished.stderr, again.stdout, again.stderr):
        assert KEY not in said
    places = [conf.parent / "completions", *layers.values()]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_key_is_in_no_log_and_no_file_of_a_run_that_fails(
    kedro_run, run_name, conf, project_folder
):
    name = run_name()
    # It quotes the key that it is shown.
    with OpenAIServer(key="another") as server:
        settings = {
            "run_name": name,
            "mt_bench.models.teacher": "hosted",
            "mt_bench.generation.engine.kind": "openai",
            "mt_bench.generation.engine.openai.base_url": server.url,
            "mt_bench.generation.engine.openai.model": MODEL,
        }
        params = ",".join(f"{key}={value}" for key, value in settings.items())
        failed = kedro_run(
            "--env", "test", "--conf-source", str(conf), "--params", params,
            "--to-outputs", "mt_bench.generations", variables={"SAMI_TRACEBACK": "1"},
        )  # fmt: skip
    assert failed.returncode != 0
    assert "Traceback" in failed.stderr, "it was asked for"
    assert "refuses the key" in failed.stderr
    assert KEY not in failed.stdout + failed.stderr
    folders = [conf.parent / "completions", *(project_folder / "data").glob(f"*/{name}")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
