"""Training by TRL's trainers, as SAMI trains: its steps, schedule, optimiser and saved states."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from sami_pipeline import files
from sami_pipeline.code_versions import CodeVersion
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.errors import InputError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import (
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from sami_pipeline.core.memory import StepMemory

logger = logging.getLogger(__name__)


def trainer_arguments(
    model: PreTrainedModel,
    config: SamiTrainingConfig,
    learning_rate: float | None,
    queries: int,
    per_query: int,
    state_folder: Path,
) -> dict[str, Any]:
    """Return SAMI's settings in the terms of transformers' Trainer."""
    from sami_pipeline.core.training import batch_schedule

    micro_batch = min(config.grids_per_micro_batch, config.batch_size)
    if config.batch_size % micro_batch:
        raise ValueError(
            f"training.sami.batch_size: {config.batch_size} must be a multiple of "
            f"grids_per_micro_batch, {micro_batch}, when a baseline is trained"
        )
    return {
        "output_dir": str(state_folder),
        # Not max_steps as it is: the Trainer would go through the data again to reach it.
        "max_steps": len(batch_schedule(queries, config)),
        "per_device_train_batch_size": micro_batch * per_query,
        "gradient_accumulation_steps": config.batch_size // micro_batch,
        "learning_rate": learning_rate or config.learning_rate,
        "weight_decay": config.weight_decay,
        "optim": {"adamw": "adamw_torch", "rmsprop": "rmsprop"}[config.optimiser],
        "adam_beta1": config.adamw_betas[0],
        "adam_beta2": config.adamw_betas[1],
        "adam_epsilon": config.adamw_epsilon,
        "max_grad_norm": config.max_gradient_norm or 0.0,
        # 16-bit weights compute as they are, as in SAMI's training.
        "bf16": config.compute_dtype == "bfloat16" and config.weights == "float32",
        "use_cpu": model.device.type == "cpu",
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps" if config.save_state_every else "no",
        "save_steps": config.save_state_every or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "seed": config.seed,
        "disable_tqdm": False,
    }


def determining_settings(config: SamiTrainingConfig) -> dict[str, Any]:
    """Return the settings that a baseline takes from SAMI's."""
    settings = config.model_dump()
    return {name: settings[name] for name in _TAKEN_FROM_SAMI}


_TAKEN_FROM_SAMI = (
    "epochs", "max_steps", "batch_size", "grids_per_micro_batch", "optimiser", "learning_rate",
    "weight_decay", "adamw_betas", "adamw_epsilon", "warmup_steps", "schedule",
    "max_gradient_norm", "train_on_eos",
    "compute_dtype", "gradient_checkpointing", "seed", "weights", "optimiser_state",
    "lora",
)  # fmt: skip


def _samis_optimiser(
    model: PreTrainedModel, config: SamiTrainingConfig, learning_rate: float
) -> Optimizer | None:
    """Return SAMI's optimiser of 16-bit weights, the model's being so from then on.

    None for fp32 weights, whose optimiser the trainer has itself.
    """
    import torch

    from sami_pipeline.core.optimisers import build_optimiser

    if config.weights == "float32":
        return None
    if config.weights == "bfloat16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return build_optimiser(model, config.replaced(learning_rate=learning_rate))


@contextmanager
def _samis_adapters(model: PreTrainedModel, config: SamiTrainingConfig) -> Iterator[dict[str, Any]]:
    """Yield what lets a trainer add SAMI's LoRA adapters, and merge them at the end.

    The trainer wraps the model and freezes its weights. Nothing is yielded where all weights are
    trained.
    """
    import torch

    from sami_pipeline.core.adapters import (
        embedding_hooks_restored,
        lora_config,
        merge_adapters,
    )
    from sami_pipeline.core.training import cast_weights

    if config.lora is None:
        yield {}
        return
    trainable = [p for p in model.parameters() if p.requires_grad]
    options = {"peft_config": lora_config(model, config.lora)}
    full: list[Any] = []
    if config.lora.frozen_weights == "bfloat16":
        full = [p for p in model.parameters() if p.dtype == torch.float32]
        cast_weights(full, torch.bfloat16)
    torch.manual_seed(config.seed)  # of the adapters' first weights
    try:
        with embedding_hooks_restored(model):
            yield options
    finally:
        # What the adapters have learnt is smaller than a bf16 weight can take.
        cast_weights(full, torch.float32)
        merge_adapters(model, trainable)


def step_memory(
    architecture: PretrainedConfig,
    config: SamiTrainingConfig,
    rows: int,
    prompt_tokens: int,
    response_tokens: int,
    *,
    device: Literal["cpu", "cuda"] = "cuda",
) -> StepMemory:
    """Return the memory of a step of TRL's trainers; see ``core.memory``.

    Args:
        architecture: the model's configuration.
        config: SAMI's.
        rows: that a query gives: one for SFT.
        prompt_tokens: of each row.
        response_tokens: of each row.
        device: see ``sami_step_memory``.
    """
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from sami_pipeline.core.memory import traced_step

    rows *= min(config.grids_per_micro_batch, config.batch_size)
    own = config.replaced(kl_beta=0.0, memory="single_pass")

    def backward(model: PreTrainedModel, reference: Any) -> None:
        add_fused_lm_head(model)
        ids = torch.zeros(rows, prompt_tokens + response_tokens, dtype=torch.long)
        labels = ids.clone()
        labels[:, :prompt_tokens] = -100
        mixed = config.weights == "float32" and config.compute_dtype == "bfloat16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            outputs = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels,
                use_cache=False, fused_lm_head=True,
            )  # fmt: skip
        outputs.log_probs.sum().backward()

    return traced_step(
        architecture, own, backward, head_tokens=rows * response_tokens, device=device
    )


def _follow_samis_schedule(trainer: Trainer, config: SamiTrainingConfig) -> None:
    """Give a trainer SAMI's warm-up and schedule; transformers' begin with a step at rate 0."""
    from torch.optim.lr_scheduler import LambdaLR

    from sami_pipeline.core.training import learning_rate_at

    def create_scheduler(num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        def factor(step: int) -> float:
            last = num_training_steps - 1  # asked once more after the last step
            return learning_rate_at(min(step, last), num_training_steps, config) / (
                config.learning_rate
            )

        trainer.lr_scheduler = LambdaLR(optimizer or trainer.optimizer, factor)
        return trainer.lr_scheduler

    trainer.create_scheduler = create_scheduler


def train(
    trainer_type: type[Trainer],
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: SamiTrainingConfig,
    examples: list[dict[str, Any]],
    determining: dict[str, Any],
    state_folder: Path,
    code: CodeVersion,
) -> pd.DataFrame:
    """Train a model in place by one of TRL's trainers, going on with what is saved.

    Args:
        trainer_type: the trainer.
        arguments: its own; see ``trainer_arguments``.
        model: fp32 weights.
        tokenizer: the model's.
        config: SAMI's.
        examples: token ids, as the trainer takes them.
        determining: all settings that the result depends on.
        state_folder: where the trainer keeps its progress.
        code: of the caller.

    Returns:
        See ``sft.train_sft``.
    """
    from transformers.utils import logging as transformers_logging

    from sami_pipeline.core.state import (
        changed_parts,
        discarded,
        fingerprint_parts,
        refuse_mismatch,
    )

    wanted = fingerprint_parts(model, examples, determining, code)
    record = state_folder / "run.json"
    saved = json.loads(record.read_text("utf-8")) if record.is_file() else None
    changed = changed_parts(saved["fingerprint"], wanted) if saved is not None else []
    if changed and saved["finished"]:
        logger.info("%s", discarded(state_folder, changed))
        shutil.rmtree(state_folder)
    resume_from = _latest_whole_checkpoint(state_folder)
    if resume_from is not None and saved is not None:
        refuse_mismatch(record, saved["fingerprint"], wanted)
        logger.info("Going on from %s", resume_from)
    files.write_text(record, json.dumps({"finished": False, "fingerprint": wanted}))
    transformers_logging.disable_progress_bar()  # of every file that a checkpoint writes
    optimiser = _samis_optimiser(model, config, arguments.learning_rate)
    with _samis_adapters(model, config) as adapters:
        trainer = _trainer(trainer_type, arguments, model, tokenizer, config, examples, adapters)
        trainer.optimizer = optimiser
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    model.eval()
    files.write_text(record, json.dumps({"finished": True, "fingerprint": wanted}))
    for older in sorted(state_folder.glob("checkpoint-*"), key=_step)[:-1]:
        shutil.rmtree(older)
    return _history(trainer.state.log_history)


def _trainer(
    trainer_type: type[Trainer],
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: SamiTrainingConfig,
    examples: list[dict[str, Any]],
    adapters: dict[str, Any],
) -> Trainer:
    """Return one of TRL's trainers with SAMI's schedule, adapters, history and states."""
    from datasets import Dataset
    from transformers import ProgressCallback

    from sami_pipeline.core.adapters import say_what_is_adapted

    weights = dict(model.named_parameters())
    trainer = trainer_type(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[_measuring_callback(model)],
        **adapters,
    )
    if adapters:
        say_what_is_adapted(model, weights)
    _refuse_other_logits(model, examples[0])
    _follow_samis_schedule(trainer, config)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_quiet_progress())
    if config.save_state_minutes is not None:
        trainer.add_callback(_timed_saves(config.save_state_minutes))
    return trainer


def _refuse_other_logits(model: PreTrainedModel, example: dict[str, Any]) -> None:
    """Refuse a model whose logits TRL's head does not compute as the model does.

    The head knows factors and soft caps of the logits by the names that some families give them.

    Raises:
        InputError: names the family and the remedy.
    """
    import torch

    ids = torch.tensor([example["input_ids"][:64]], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        own = model(**inputs).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])
        given = model(**inputs, labels=ids, fused_lm_head=True).log_probs
    model.train(was_training)
    if not own.isfinite().all():  # training says so, and what to do
        return
    apart = (own[:, 0] - given.flatten()[: len(own)]).abs().max().item()
    if not apart <= (1e-3 if own.dtype == model.dtype else 0.3):
        raise InputError(
            f"models.student: TRL computes the logits of {model.config.model_type} otherwise than "
            f"the model does ({apart:.2g} nats a token), so TRL can't train it; "
            "take sft and what goes on with it out of models.under_test"
        )


def _timed_saves(minutes: float) -> TrainerCallback:
    """Return what lets a trainer save its state after a time, and at the end."""
    from transformers import TrainerCallback

    class TimedSaves(TrainerCallback):
        def __init__(self) -> None:
            self.saved_at = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            passed = time.monotonic() - self.saved_at
            if passed >= 60 * minutes or state.global_step >= state.max_steps:
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved_at = time.monotonic()

    return TimedSaves()


def _latest_whole_checkpoint(folder: Path) -> Path | None:
    """Return the latest checkpoint of the Trainer that a kill did not cut short.

    The Trainer writes ``trainer_state.json`` last.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            whole.append(checkpoint)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


def _quiet_progress() -> Any:
    """Return the Trainer's progress bar without its prints, which would mix with the results."""
    from transformers import ProgressCallback

    class QuietProgress(ProgressCallback):
        def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            if self.training_bar is not None and "loss" in state.log_history[-1]:
                self.training_bar.set_postfix(loss=f"{state.log_history[-1]['loss']:.3f}")

    return QuietProgress()


def _measuring_callback(model: PreTrainedModel) -> Any:
    """Return a callback that adds what SAMI's history has to the Trainer's log of each step."""
    from transformers import TrainerCallback

    from sami_pipeline.core.optimisers import sample_weights
    from sami_pipeline.core.training import SAMPLED_WEIGHTS_PER_TENSOR, peak_memory

    class Measuring(TrainerCallback):
        tokens = 0.0  # counted by TRL, from this process's first step

        def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            self.started = time.perf_counter()

        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, optimizer: Any, **options: Any
        ) -> None:
            self.optimizer = getattr(optimizer, "optimizer", optimizer)
            self.before = sample_weights(self.optimizer, SAMPLED_WEIGHTS_PER_TENSOR)

        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            after = sample_weights(self.optimizer, SAMPLED_WEIGHTS_PER_TENSOR)
            self.seconds = time.perf_counter() - self.started
            self.measured = {
                "weights_moved": (self.before != after).double().mean().item(),
                "peak_memory_bytes": peak_memory(model.device),
            }

        def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            entry = state.log_history[-1]
            if "grad_norm" in entry:
                seen, self.tokens = self.tokens, entry["num_tokens"]
                entry |= self.measured
                entry["tokens_per_second"] = (self.tokens - seen) / self.seconds

    return Measuring()


_COLUMNS = {
    "step": "step",
    "loss": "loss",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "weights_moved": "weights_moved",
    "tokens_per_second": "tokens_per_second",
    "peak_memory_bytes": "peak_memory_bytes",
}


def _history(log: list[dict[str, Any]]) -> pd.DataFrame:
    steps = [entry for entry in log if "grad_norm" in entry]
    return pd.DataFrame(
        [{ours: entry[theirs] for theirs, ours in _COLUMNS.items() if theirs in entry}
         for entry in steps]
    )  # fmt: skip
