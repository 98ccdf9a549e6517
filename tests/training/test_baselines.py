"""SFT and DPO in SAMI's loop: the same tokens as SAMI, and going on after a kill."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file

from sami_pipeline.core import (
    Grid,
    LoraParameters,
    SamiTrainingConfig,
    StateMismatchError,
    grid_logprobs,
    training,
)
from sami_pipeline.core.training import batch_schedule, learning_rate_at
from sami_pipeline.models.checkpoints import ModelSource, import_model
from sami_pipeline.parameters import (
    DpoParameters,
    IterationsParameters,
    MtBenchParameters,
    SftParameters,
)
from sami_pipeline.session.experiments import _base_parameters
from sami_pipeline.training.baselines import dpo, registry, sft

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import families

CONFIG = SamiTrainingConfig(
    batch_size=2, learning_rate=1e-3, compute_dtype="float32", save_state_every=1, seed=3
)
METHODS = {"dpo": (dpo.train_dpo, DpoParameters), "sft": (sft.train_sft, SftParameters)}
MEASURED = ["tokens_per_second", "peak_memory_bytes"]


def make_grids(count: int = 6) -> list[Grid]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 250, (length,), generator=generator).tolist()

    return [Grid([ids(5), ids(7)], [ids(4 + i % 3), ids(3)]) for i in range(count)]


def make_model():
    return import_model(ModelSource.model_validate("random:0"), Path())


def train(method: str, folder: Path, grids: list[Grid] | None = None, config=CONFIG, **changes):
    loaded = make_model()
    function, kind = METHODS[method]
    history = function(
        loaded.model, loaded.tokenizer, grids or make_grids(), config, kind(**changes), folder
    )
    return loaded.model, history


def test_all_pairs_hold_what_a_grid_holds_and_desired_ones_only_the_first_constitution():
    grid = Grid([[1], [2], [3]], [[4], [5], [6]])
    assert dpo.preference_grids([grid], DpoParameters(pairs="all")) == [grid]
    assert dpo.preference_grids([grid], DpoParameters()) == [Grid([[1]], [[4], [5], [6]])]


def test_demonstrations_are_the_desired_prompts_and_responses():
    (example,) = sft.demonstrations([Grid([[1, 2], [3]], [[4, 5, 6], [7]])], SftParameters())
    assert example == Grid([[1, 2]], [[4, 5, 6]])


def test_dpo_starts_at_chance_and_takes_as_many_steps_as_sami(tmp_path):
    _, history = train("dpo", tmp_path)
    assert history["step"].tolist() == [1, 2, 3]
    assert history["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert history["reward_margin"][0] == pytest.approx(0, abs=1e-5)
    assert (history["weights_moved"] > 0).all()
    assert (history["tokens_per_second"] > 0).all()


@pytest.mark.parametrize("weights", ["bfloat16_remainder", "bfloat16"])
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_16_bit_weights_are_trained_by_samis_optimiser(method, weights, tmp_path):
    config = CONFIG.replaced(weights=weights, compute_dtype="bfloat16")
    model, history = train(method, tmp_path, make_grids(1) * 6, config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    if method == "dpo":  # the reference computes in 16 bits too
        assert history["reward_margin"][0] == pytest.approx(0, abs=1e-3)
    assert history["loss"].iloc[-1] < history["loss"][0]
    assert (history["weights_moved"] > 0).all()


def test_dpo_learns_the_difference_of_log_probabilities_that_the_grid_gives(tmp_path):
    # One step, one query, no clipping in sight: the loss of the next step is DPO's own formula.
    grid = make_grids(1)[0]
    model, history = train("dpo", tmp_path, [grid] * 4, beta=0.5, pairs="all")
    initial = make_model().model
    with torch.no_grad():
        before = grid_logprobs(initial, grid).sums
        after = grid_logprobs(model, grid).sums
    change = after - before
    margins = torch.stack([change[0, 0] - change[0, 1], change[1, 1] - change[1, 0]])
    loss = -F.logsigmoid(0.5 * margins).mean().item()
    assert loss < history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert (margins > 0).all()


def stop_after_saving(step: int, stop: Callable[[], None], patch: Any = None) -> None:
    """Call a function once the state of a step is on disk."""
    saves = training.save_state

    def save_state(folder, done, *rest, writer, **options):
        saves(folder, done, *rest, writer=None, **options)
        if done == step:
            stop()

    (setattr if patch is None else patch.setattr)(training, "save_state", save_state)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_killed_training_ends_in_the_same_weights_and_history(method, tmp_path):
    whole, expected = train(method, tmp_path / "whole")
    killed = tmp_path / "killed"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[3]); import test_baselines as t\n"
        "t.stop_after_saving(2, lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        "t.train(sys.argv[1], Path(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, method, str(killed), str(Path(__file__).parent)],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    # A state that was being written when the process died.
    (killed / ".step-00000003.partial").mkdir()
    resumed, history = train(method, killed)
    assert history["step"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(
        history.drop(columns=MEASURED), expected.drop(columns=MEASURED), check_exact=True
    )
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def unfinish(folder: Path) -> None:
    """Let a training look as if it had not come to its end."""
    record = next(folder.glob("step-*/state.json"))
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_progress_of_another_run_is_refused_unless_it_came_to_its_end(method, tmp_path):
    train(method, tmp_path)
    train(method, tmp_path, learning_rate=3e-4)  # the first is finished: it makes room
    unfinish(tmp_path)
    with pytest.raises(StateMismatchError, match=r"step-00000003.*\(parameters changed\)"):
        train(method, tmp_path, learning_rate=4e-4)


@pytest.mark.parametrize(
    ("method", "module", "line"),
    [
        ("dpo", "core.dpo", "return -F.logsigmoid("),
        ("sft", "core.sft", "return -result.means.mean()"),
    ],
)
def test_progress_of_other_code_is_not_gone_on_with(
    method, module, line, tmp_path, sources, caplog
):
    caplog.set_level("INFO")
    file = module.replace(".", "/") + ".py"
    train(method, tmp_path)
    sources(file, line, f"print; {line}")
    _, history = train(method, tmp_path)  # the first is finished: it makes room
    assert f"discarded, its training starts over: code of {module} changed" in caplog.text
    assert "Going on" not in caplog.text
    assert len(history) == 3
    unfinish(tmp_path)
    sources(file, line, f"print; {line}")
    with pytest.raises(StateMismatchError, match=rf"\(code of {module} changed\); delete"):
        train(method, tmp_path)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_steps_and_learning_rates_are_those_of_sami(method, tmp_path):
    config = CONFIG.replaced(warmup_steps=1, schedule="linear", max_steps=50, epochs=2)
    _, history = train(method, tmp_path, config=config)
    total = len(batch_schedule(6, config))
    assert total == 6, "max_steps cuts and never lengthens"
    expected = [learning_rate_at(step, total, config) for step in range(total)]
    assert history["learning_rate"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("method", ["dpo", "sft"])
@pytest.mark.parametrize("finished", [True, False])
def test_progress_by_trl_is_discarded_after_its_end_and_refused_before(
    finished, method, tmp_path, caplog
):
    caplog.set_level("INFO")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "run.json").write_text(
        f'{{"finished": {str(finished).lower()}, "fingerprint": {{}}}}'
    )
    if finished:
        train(method, tmp_path)
        assert "an earlier version trained with TRL's trainer" in caplog.text
        assert not (tmp_path / "checkpoint-2").exists()
    else:
        with pytest.raises(StateMismatchError, match=r"run.json.*with TRL's trainer; delete"):
            train(method, tmp_path)
        assert (tmp_path / "checkpoint-2").exists()


LORA = {"rank": 2, "alpha": 4.0}


@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_adapters_reach_a_baseline_and_are_merged_as_samis_are(method, frozen, tmp_path, caplog):
    caplog.set_level("INFO")
    config = CONFIG.replaced(
        lora=LoraParameters(**LORA, frozen_weights=frozen), compute_dtype=frozen,
        gradient_checkpointing=frozen == "bfloat16", learning_rate=1e-2,
    )  # fmt: skip
    trained, history = train(method, tmp_path, make_grids(1) * 6, config)
    assert "Adapters change layers" in caplog.text
    if method == "dpo":
        # The reference is the model without its adapters, which are nothing at first.
        assert history["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert history["loss"].iloc[-1] < history["loss"][0]
    assert (history["weights_moved"] > 0).all()
    initial = dict(make_model().model.named_parameters())
    assert initial.keys() == dict(trained.named_parameters()).keys()
    for name, weight in trained.named_parameters():
        start = initial[name]
        if frozen == "bfloat16":
            start = start.bfloat16().float()
        assert weight.dtype == torch.float32
        assert weight.requires_grad
        change = (weight - start).detach()
        if name.endswith("_proj.weight"):
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 2, name
        else:
            assert not change.any(), name
    assert not trained.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_killed_training_of_adapters_goes_on(method, tmp_path, monkeypatch):
    config = CONFIG.replaced(lora=LoraParameters(**LORA, dropout=0.2))
    whole, expected = train(method, tmp_path / "whole", config=config)

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        stop_after_saving(2, stop, patch)
        with pytest.raises(KeyboardInterrupt):
            train(method, tmp_path / "killed", config=config)
    saved = next((tmp_path / "killed").glob("step-*2"))
    assert all(".lora_" in name for name in load_file(saved / "model.safetensors"))
    resumed, history = train(method, tmp_path / "killed", config=config)
    pd.testing.assert_frame_equal(
        history.drop(columns=MEASURED), expected.drop(columns=MEASURED), check_exact=True
    )
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_adapters_which_a_baseline_cannot_follow_are_refused_beside_one(monkeypatch):
    parameters = _base_parameters()["mt_bench"]
    parameters["training"]["sami"] |= {"lora": LORA}
    MtBenchParameters.model_validate(parameters)
    for name in ("sft", "sft_dpo"):
        other = replace(registry.baselines()[name], follows_lora=False)
        monkeypatch.setitem(registry._BASELINES, name, other)
    with pytest.raises(ValidationError, match=r"lora: sft and sft_dpo trained with all weights"):
        MtBenchParameters.model_validate(parameters)
    parameters["models"] |= {"under_test": ["base", "sami"], "baseline": "base"}
    MtBenchParameters.model_validate(parameters)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_model_with_a_rare_cap_on_its_logits_is_trained(method, tmp_path):
    """recurrent_gemma has a soft cap of another name than other families."""
    function, kind = METHODS[method]
    grid = Grid([[5, 6, 7], [5, 8]], [[9, 10], [11, 12]])
    model = families.tiny_model("recurrent_gemma")
    with torch.no_grad():
        result = grid_logprobs(model.eval(), grid)
    history = function(model, make_model().tokenizer, [grid] * 4, CONFIG, kind(), tmp_path)
    first = math.log(2) if method == "dpo" else -result.means[0, 0].item()
    assert history["loss"][0] == pytest.approx(first, abs=1e-5)
    assert history["loss"].iloc[-1] < history["loss"][0]


def test_a_baseline_takes_the_steps_of_the_last_iteration():
    iterations = IterationsParameters(count=3, steps=(2, 4, 6))
    assert iterations.training_config(CONFIG, 3).max_steps == 6
    assert IterationsParameters().training_config(CONFIG, 1) is CONFIG
