"""DPO in SAMI's loop: what TRL's DPOTrainer computes, from prompts that are read once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_baselines import make_model
from trl import DPOConfig, DPOTrainer
from trl_oracle import (
    arguments,
    check_gradients,
    check_history,
    check_weights,
    first_gradients,
    train_by_trl,
)

from sami_pipeline.core import Grid, SamiTrainingConfig, StateMismatchError, dpo, training
from sami_pipeline.core.distributed import Workers
from sami_pipeline.core.dpo import REFERENCE_FILE, DpoObjective
from sami_pipeline.core.packing import packed_length
from sami_pipeline.core.training import batch_schedule
from sami_pipeline.training.baselines.dpo import DpoParameters, preference_grids, train_dpo

BETA = 0.1
CONFIG = SamiTrainingConfig(
    batch_size=4, grids_per_micro_batch=2, epochs=2, learning_rate=1e-3, adamw_epsilon=1e-5,
    warmup_steps=2, schedule="cosine", compute_dtype="float32", seed=3,
)  # fmt: skip


def make_grids(constitutions: int, count: int = 8) -> list[Grid]:
    """Return grids of as many lengths as there are, in disorder."""
    generator = torch.Generator().manual_seed(constitutions)

    def ids(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        return torch.randint(3, 250, (length,), generator=generator).tolist()

    def sequences(*lengths: int) -> list[list[int]]:
        return [ids(*lengths) for _ in range(constitutions)]

    return [Grid(sequences(3, 20), sequences(1, 14)) for _ in range(count)]


def pairs_of(grid: Grid, which: str) -> list[dict[str, list[int]]]:
    size = len(grid.prompt_ids)
    return [
        {
            "prompt_ids": list(grid.prompt_ids[i]),
            "chosen_ids": list(grid.response_ids[i]),
            "rejected_ids": list(grid.response_ids[j]),
        }
        for i in range(size if which == "all" else 1)
        for j in range(size)
        if j != i
    ]


class OnIds(DPOTrainer):
    """TRL's own, but for ids that are taken as they are."""

    def _prepare_dataset(self, dataset: Dataset, *rest: Any, **options: Any) -> Dataset:
        return dataset


def by_trl(loaded: Any, grids: list[Grid], which: str, folder: Path) -> Any:
    """Train a model by TRL and return its log and the first step's gradients."""
    steps = batch_schedule(len(grids), CONFIG)
    pairs = [pair for step in steps for number in step for pair in pairs_of(grids[number], which)]
    per_query = len(pairs_of(grids[0], which))
    settings = DPOConfig(
        **arguments(CONFIG, len(grids), per_query, folder),
        beta=BETA,
        precompute_ref_log_probs=True,
    )
    return train_by_trl(OnIds, settings, CONFIG, loaded, pairs)


@pytest.mark.parametrize(("constitutions", "which"), [(2, "desired"), (3, "desired"), (3, "all")])
def test_losses_gradients_and_weights_are_those_of_trl(constitutions, which, tmp_path):
    grids = make_grids(constitutions)
    theirs, ours = make_model(), make_model()
    log, expected = by_trl(theirs, grids, which, tmp_path / "trl")
    parameters = DpoParameters(beta=BETA, pairs=which)
    history = train_dpo(ours.model, ours.tokenizer, grids, CONFIG, parameters, tmp_path / "ours")
    check_history(
        history,
        log,
        {
            "loss": ("loss", 1e-6),
            "reward_margin": ("rewards/margins", 2e-6),
            "preference_accuracy": ("rewards/accuracies", 1e-7),
        },
    )
    pairs = preference_grids(grids, parameters)
    found = first_gradients(make_model().model, pairs, CONFIG, DpoObjective(BETA))
    check_gradients(found, expected)
    check_weights(ours.model, theirs.model, make_model().model)


def train(folder: Path, config: SamiTrainingConfig = CONFIG, **changes: Any) -> Any:
    loaded = make_model()
    parameters = DpoParameters(**changes)
    return train_dpo(loaded.model, loaded.tokenizer, make_grids(2), config, parameters, folder)


def test_a_step_takes_a_prompt_once_for_both_responses(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    seen = []
    real = training.logprobs_as_trained

    def spy(model, grids, *rest):
        seen.append((torch.is_grad_enabled(), grids))
        return real(model, grids, *rest)

    monkeypatch.setattr(training, "logprobs_as_trained", spy)
    train(tmp_path, CONFIG.replaced(epochs=1))
    assert "Rows are laid out as shared_prefix" in caplog.text
    computed = [grid for trained, grids in seen for grid in grids if trained]
    expected = [len(g.prompt_ids[0]) + g.response_tokens for g in make_grids(2)]
    assert sorted(map(packed_length, computed)) == sorted(expected)


def test_what_the_reference_gives_is_computed_once_and_kept_for_the_same_run(tmp_path, monkeypatch):
    config = CONFIG.replaced(save_state_every=1)
    real, calls = dpo._reference_sums, []

    def counting(*inputs):
        calls.append(None)
        return real(*inputs)

    monkeypatch.setattr(dpo, "_reference_sums", counting)
    expected = train(tmp_path / "whole", config)
    saves = training.save_state

    def save_and_stop(folder, done, *rest, writer, **options):
        saves(folder, done, *rest, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", config)
    assert len(calls) == 2
    history = train(tmp_path / "killed", config)
    assert len(calls) == 2
    assert history["loss"].tolist() == expected["loss"].tolist()
    train(tmp_path / "killed", config, beta=0.3)  # the finished one makes room
    assert len(calls) == 3
    train(tmp_path / "unkept", CONFIG)
    assert not list((tmp_path / "unkept").glob("*")), "nothing is kept where no state is"


def test_the_reference_is_kept_without_anything_that_could_run(tmp_path):
    train(tmp_path, CONFIG.replaced(save_state_every=4))
    kept = load_file(tmp_path / REFERENCE_FILE)
    assert {name: tensor.shape for name, tensor in kept.items()} == {"sums": (8 * 2,)}


def test_another_unfinished_run_is_refused_before_the_reference_is_computed(tmp_path, monkeypatch):
    config = CONFIG.replaced(save_state_every=4)
    train(tmp_path, config)
    record = next(tmp_path.glob("step-*/state.json"))
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    monkeypatch.setattr(dpo, "_reference_sums", None)
    with pytest.raises(StateMismatchError, match=r"\(parameters changed\)"):
        train(tmp_path, config, beta=0.3)


def test_what_is_samis_alone_changes_nothing(tmp_path):
    other = CONFIG.replaced(kl_beta=0.5, length_normalise=False, memory="two_pass")
    columns = ["loss", "gradient_norm", "reward_margin"]
    plain, odd = (train(tmp_path / "x", config)[columns] for config in (CONFIG, other))
    assert plain.equals(odd)


def test_grids_without_a_pair_and_several_workers_are_refused(monkeypatch):
    objective = DpoObjective(0.1)
    with pytest.raises(ValueError, match=r"grids\[1\]: 1 prompts and 1 responses"):
        objective.check([Grid([[1]], [[2], [3]]), Grid([[1]], [[2]])])
    monkeypatch.setattr(dpo, "current_workers", lambda: Workers(0, 2))
    with pytest.raises(ValueError, match="DPO: is not there for several workers"):
        objective.check([Grid([[1]], [[2], [3]])])
