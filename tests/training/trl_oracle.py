"""TRL's trainers as they are, on the ids, in the order and at the learning rates of SAMI's loop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback

from sami_pipeline.core import Grid, SamiTrainingConfig
from sami_pipeline.core.training import (
    Objective,
    accumulate_gradients,
    batch_schedule,
    learning_rate_at,
    prepared,
)


def arguments(config: SamiTrainingConfig, queries: int, rows: int, folder: Path) -> dict[str, Any]:
    """Return a configuration in the terms of a trainer, where a query gives so many rows."""
    return {
        "output_dir": str(folder),
        "max_length": None,
        "max_steps": len(batch_schedule(queries, config)),
        "per_device_train_batch_size": rows * config.grids_per_micro_batch,
        "gradient_accumulation_steps": config.batch_size // config.grids_per_micro_batch,
        "learning_rate": config.learning_rate,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "adam_epsilon": config.adamw_epsilon,
        "max_grad_norm": config.max_gradient_norm,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def train_by_trl(
    trainer_type: type[Trainer],
    settings: Any,
    config: SamiTrainingConfig,
    loaded: Any,
    rows: list[dict[str, Any]],
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Train a model by TRL and return its log and the first step's gradients."""
    first: dict[str, torch.Tensor] = {}

    class Oracle(trainer_type):
        def _get_train_sampler(self, *rest: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            factors = [
                learning_rate_at(step, num_training_steps, config) / config.learning_rate
                for step in range(num_training_steps)
            ]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: factors[min(step, len(factors) - 1)]
            )
            return self.lr_scheduler

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *rest: Any, **options: Any) -> None:
            if not first:
                first.update({n: p.grad.clone() for n, p in options["model"].named_parameters()})

    trainer = Oracle(
        model=loaded.model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        callbacks=[Gradients()],
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry], first


def first_gradients(
    model: Any, grids: list[Grid], config: SamiTrainingConfig, objective: Objective
) -> dict[str, torch.Tensor]:
    """Return the gradients of our loop's first step as the optimiser takes them."""
    with prepared(model, config):
        known = objective.begun(model, grids, config, None, {}, False)
        batch = [known[number] for number in batch_schedule(len(grids), config)[0]]
        accumulate_gradients(model, batch, config, None, objective)
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_history(
    history: pd.DataFrame, log: list[dict[str, float]], further: Mapping[str, tuple[str, float]]
) -> None:
    """Compare every step; ``further`` has columns with TRL's name and an absolute tolerance."""
    known = {
        "loss": ("loss", {"rel": 1e-6}),
        "gradient_norm": ("grad_norm", {"rel": 1e-5}),
        "learning_rate": ("learning_rate", {"rel": 1e-9}),
    } | {column: (name, {"abs": tolerance}) for column, (name, tolerance) in further.items()}
    assert len(history) == len(log) == 4
    for column, (name, tolerance) in known.items():
        wanted = [entry[name] for entry in log]
        assert history[column].tolist() == pytest.approx(wanted, **tolerance), column


def check_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare the gradients of all weights."""
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def check_weights(ours: Any, theirs: Any, initial: Any) -> None:
    """Compare trained weights, all of which have moved."""
    trained, before = (dict(model.named_parameters()) for model in (ours, initial))
    for name, weight in theirs.named_parameters():
        assert (weight - before[name]).abs().max() > 1e-4, name
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-6)
