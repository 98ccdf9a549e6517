"""DPO in SAMI's loop: what TRL's DPOTrainer computes, from prompts that are read once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_baselines import make_model
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from sami_pipeline.core import Grid, SamiTrainingConfig, StateMismatchError, dpo, training
from sami_pipeline.core.distributed import Workers
from sami_pipeline.core.dpo import REFERENCE_FILE, DpoObjective
from sami_pipeline.core.packing import packed_length
from sami_pipeline.core.training import accumulate_gradients, batch_schedule, prepared
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


class Oracle(DPOTrainer):
    """TRL's own, but for ids that are taken as they are, in the order that they are given in."""

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **options: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        factors = [
            training.learning_rate_at(step, num_training_steps, CONFIG) / CONFIG.learning_rate
            for step in range(num_training_steps)
        ]
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: factors[min(step, len(factors) - 1)]
        )
        return self.lr_scheduler


def by_trl(model: Any, tokenizer: Any, grids: list[Grid], which: str, folder: Path) -> Any:
    """Train a model by TRL and return its log and the first step's gradients."""
    steps = batch_schedule(len(grids), CONFIG)
    pairs = [pair for step in steps for number in step for pair in pairs_of(grids[number], which)]
    per_query = len(pairs_of(grids[0], which))
    first: dict[str, torch.Tensor] = {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
            if not first:
                first.update({n: p.grad.clone() for n, p in options["model"].named_parameters()})

    trainer = Oracle(
        model=model,
        args=DPOConfig(
            str(folder), beta=BETA, max_length=None, precompute_ref_log_probs=True,
            max_steps=len(steps), per_device_train_batch_size=2 * per_query,
            gradient_accumulation_steps=2, learning_rate=CONFIG.learning_rate, weight_decay=0.0,
            optim="adamw_torch", adam_epsilon=CONFIG.adamw_epsilon,
            max_grad_norm=CONFIG.max_gradient_norm, bf16=False, use_cpu=True,
            gradient_checkpointing=False, save_strategy="no", logging_steps=1, report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[Gradients()],
    )  # fmt: skip
    trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry], first


@pytest.mark.parametrize(("constitutions", "which"), [(2, "desired"), (3, "desired"), (3, "all")])
def test_losses_gradients_and_weights_are_those_of_trl(constitutions, which, tmp_path):
    grids = make_grids(constitutions)
    theirs, ours = make_model(), make_model()
    log, expected = by_trl(theirs.model, theirs.tokenizer, grids, which, tmp_path / "trl")
    parameters = DpoParameters(beta=BETA, pairs=which)
    history = train_dpo(ours.model, ours.tokenizer, grids, CONFIG, parameters, tmp_path / "ours")
    assert len(history) == len(log) == 4
    for column, name, tolerance in (
        ("loss", "loss", {"abs": 1e-6}),
        ("reward_margin", "rewards/margins", {"abs": 2e-6}),
        ("preference_accuracy", "rewards/accuracies", {"abs": 1e-7}),
        ("gradient_norm", "grad_norm", {"rel": 1e-5}),
        ("learning_rate", "learning_rate", {"rel": 1e-9}),
    ):
        wanted = [entry[name] for entry in log]
        assert history[column].tolist() == pytest.approx(wanted, **tolerance), column
    for name, gradient in first_gradients(grids, parameters).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)
    trained, initial = (dict(loaded.model.named_parameters()) for loaded in (ours, make_model()))
    for name, weight in theirs.model.named_parameters():
        assert (weight - initial[name]).abs().max() > 1e-4, name
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-6)


def first_gradients(grids: list[Grid], parameters: DpoParameters) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step as the optimiser takes them."""
    model, objective = make_model().model, DpoObjective(parameters.beta)
    with prepared(model, CONFIG):
        known = objective.begun(model, preference_grids(grids, parameters), CONFIG, None, {}, False)
        batch = [known[number] for number in batch_schedule(len(grids), CONFIG)[0]]
        accumulate_gradients(model, batch, CONFIG, None, objective)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.max_gradient_norm)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


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


@pytest.mark.parametrize("finished", [True, False])
def test_progress_by_trl_is_discarded_after_its_end_and_refused_before(finished, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "run.json").write_text(
        f'{{"finished": {str(finished).lower()}, "fingerprint": {{}}}}'
    )
    if finished:
        train(tmp_path)
        assert "an earlier version trained with TRL's trainer" in caplog.text
        assert not (tmp_path / "checkpoint-2").exists()
    else:
        with pytest.raises(StateMismatchError, match=r"run.json.*with TRL's trainer; delete"):
            train(tmp_path)
        assert (tmp_path / "checkpoint-2").exists()


def test_grids_without_a_pair_and_several_workers_are_refused(monkeypatch):
    objective = DpoObjective(0.1)
    with pytest.raises(ValueError, match=r"grids\[1\]: 1 prompts and 1 responses"):
        objective.check([Grid([[1]], [[2], [3]]), Grid([[1]], [[2]])])
    monkeypatch.setattr(dpo, "current_workers", lambda: Workers(0, 2))
    with pytest.raises(ValueError, match="DPO: is not there for several workers"):
        objective.check([Grid([[1]], [[2], [3]])])
