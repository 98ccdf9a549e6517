"""A dry run says what an experiment needs, refuses what won't fit, and makes nothing."""

import json
import re
from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader

from sami_pipeline import dry_run
from sami_pipeline.errors import InputError
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.models.checkpoints import ModelSource
from sami_pipeline.parameters import DryRunParameters, MtBenchParameters
from sami_pipeline.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[2]
SHIPPED = sorted((PROJECT / dry_run.ARCHITECTURES).glob("*/*/config.json"))
pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def parameters_of(environment: str) -> dict:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), env=environment, **CONFIG_LOADER_ARGS)
    return loader["parameters"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_architecture_has_the_published_number_of_parameters(path):
    from sami_pipeline.core.memory import empty_model

    source = ModelSource.model_validate(f"hub:{path.parent.parent.name}/{path.parent.name}")
    config = dry_run.open_architecture("base", source).config
    parameters = sum(p.numel() for p in empty_model(config).parameters())
    assert parameters == (8_030_261_248 if "Llama" in path.parent.name else 7_241_732_096)


def test_every_hub_model_of_conf_paper_is_shipped():
    named = parameters_of("paper")
    for experiment in experiments():
        for source in named[experiment]["models"]["sources"].values():
            assert any(source == f"hub:{p.parent.parent.name}/{p.parent.name}" for p in SHIPPED)


@pytest.mark.parametrize(
    ("experiment", "parts"),
    [
        ("mt_bench", ("training (sft_sami)", "training (sft_dpo)", "8.03e9 parameters")),
        ("math", ("training (sft_sami)", "7.24e9 parameters")),
        # The clone that holds its principles is not here.
        (
            "align,align.principles=data/01_raw/align/dialogue.yml",
            ("training (sami)", "7.24e9 parameters", "gpt-4-0613"),
        ),
    ],
)
def test_paper_fits_one_80_gb_gpu_and_nothing_is_made(kedro_run, experiment, parts):
    before = set((PROJECT / "data").rglob("paper"))
    experiment, _, more = experiment.partition(",")
    run = kedro_run("--env", "paper", "--params", f"dry_run=true,{more}", pipeline=experiment)
    assert run.returncode == 0, run.stderr[-2000:]
    for part in (*parts, "NOT CHECKED"):
        assert part in run.stdout
    assert set((PROJECT / "data").rglob("paper")) == before


def examined(
    environment: str,
    changes: dict | None = None,
    alter=lambda principles: principles,
    **assumptions,
) -> dry_run.DryRun:
    import pandas as pd
    import yaml

    from sami_pipeline.models.prompts import PromptTemplate
    from sami_pipeline.principles.constitutions import tabulate_principles

    raw = PROJECT / "data" / "01_raw"
    files = (raw / "principles").glob("*.yml")
    principles = tabulate_principles({f.name: yaml.safe_load(f.read_text("utf-8")) for f in files})
    assert isinstance(principles, pd.DataFrame)
    principles = alter(principles)
    parameters = parameters_of(environment)
    content = json.loads(json.dumps(parameters["mt_bench"]))
    for path, value in (changes or {}).items():
        *groups, last = path.split(".")
        group = content
        for name in groups:
            group = group[name]
        group[last] = value
    template = yaml.safe_load((raw / "prompt_templates" / "chat.yml").read_text("utf-8"))
    names = ("generation_prompt", "training_prompt", "evaluation_prompt")
    experiment = MtBenchParameters.model_validate(content)
    return dry_run.examine(
        "mt_bench",
        experiment,
        principles,
        {name: PromptTemplate.parse(template, name) for name in names},
        DryRunParameters.model_validate(parameters["dry_run_assumptions"] | assumptions),
        experiments()["mt_bench"].workload(experiment, principles),
    )


def test_prompts_are_as_long_as_the_longest_wording_makes_them():
    long = "Say all of it in every word that there is. " * 40

    def longest(use: str, **asked) -> dict[str, int]:
        def lengthen(principles):
            words = [json.loads(each) for each in principles["wordings"]]
            for each in words:
                each["antithesis"][use].append(long)
            return principles.assign(wordings=[json.dumps(each) for each in words])

        changes = {f"evaluation.{name}": value for name, value in asked.items()}
        stages = examined("test", changes, lengthen).stages
        pattern = r"prompts? of (?:at most )?(\d+)"
        return {stage.name: int(re.search(pattern, stage.shape)[1]) for stage in stages}

    plain = longest("evaluation", trained_wording=False)
    by_name = {name.partition(" ")[0]: name for name in plain}
    in_training = longest("training", trained_wording=False)
    for stage in ("generation", "training", "held-out"):
        assert in_training[by_name[stage]] > plain[by_name[stage]] + 300
    assert plain[by_name["evaluation"]] > in_training[by_name["evaluation"]] + 300
    again = longest("training", trained_wording=True)
    assert again[by_name["evaluation"]] > in_training[by_name["evaluation"]] + 300


def test_what_does_not_fit_is_refused_on_the_command_line(kedro_run):
    limits = "dry_run_assumptions.gpu_memory_gb=1.6,dry_run_assumptions.reserve_gb=1.59"
    run = kedro_run("--env", "test", "--params", f"dry_run=true,{limits}")
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    (said,) = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    for part in (
        "training (sami): takes",
        "GB of each GPU",
        "gpu_memory_gb: 1.6",
        "gradient_checkpointing: true",
    ):
        assert part in said


def test_the_default_of_the_small_model_would_not_fit_at_8b():
    changes = {
        "models.sources": {"base": "hub:meta-llama/Llama-3.1-8B"},
        "models.under_test": ["base", "sami"],
    }
    outcome = examined("test", changes, gpu_memory_gb=80)
    (sami,) = [fault for fault in outcome.faults if fault.startswith("training (sami)")]
    for remedy in ("bfloat16_remainder", "gradient_checkpointing", "lora", "num_processes"):
        assert remedy in sami
    (stage,) = [stage for stage in outcome.stages if stage.name == "training (sami)"]
    assert stage.total > 128e9


def test_disk_holds_states_checkpoints_and_completions():
    outcome = examined("test")
    weights = outcome.sizes["base"]
    stages = {stage.name: stage for stage in outcome.stages}
    sami, dpo = stages["training (sami)"], stages["training (dpo)"]
    # fp32 weights and two moments of AdamW: 12 bytes a weight, and a step's number for each tensor.
    assert sami.states == pytest.approx(12 * weights, rel=0.01)
    assert sami.kept == dpo.kept == 4 * weights
    written = sum(stage.kept for stage in outcome.stages if not stage.states)
    assert written > 0
    assert outcome.imported == 4 * weights, "of the random model, which is no file to link"
    assert outcome.disk_left == outcome.imported + sami.kept + dpo.kept + written
    assert outcome.disk_needed == 3 * sami.states + outcome.disk_left
    assert not outcome.faults
    assert not sami.parts["copy"], "one process on a CPU writes its state itself"
    two = examined("test", {"training.launch": {"num_processes": 2}})
    (copied,) = [stage for stage in two.stages if stage.name == "training (sami)"]
    assert 2 * copied.parts["copy"] == pytest.approx(copied.states)
    no_states = {"training.sami": {"save_state_every": 0, "save_state_minutes": None}}
    none = examined("test", no_states, disk_gb=1e-5)
    assert none.disk_needed == outcome.disk_left
    (fault,) = none.faults
    said = none.text().splitlines()
    largest = max(none.stages, key=lambda stage: stage.total)
    (memory,) = [line for line in said if line.startswith("Memory at the most: ")]
    assert f"{largest.total / 1e9:.2f} GB ({largest.name})" in memory
    assert said[-1].endswith(f"{none.disk_left / 1e9:.2f} GB stay after the run")
    assert fault.startswith("disk: all together 0.0 GB are needed")
    assert "disk_gb: 1e-05" in fault


def test_prompt_and_response_beyond_the_context_are_refused():
    outcome = examined("test", {"evaluation.max_new_tokens": 8000})
    assert any(
        "mt_bench.evaluation.max_new_tokens" in fault and "8192" in fault
        for fault in outcome.faults
    )


def test_unknown_hub_model_is_named_with_the_remedy():
    with pytest.raises(InputError, match=r"models\.sources\.base.*nobody/nothing.*config\.json"):
        dry_run.open_architecture("base", ModelSource.model_validate("hub:nobody/nothing"))


def test_dry_run_must_be_true_or_false(kedro_run):
    run = kedro_run("--env", "test", "--params", "dry_run=perhaps")
    assert run.returncode != 0
    assert "dry_run: must be true or false" in run.stderr
