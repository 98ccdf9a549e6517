"""Parameters of a SAMI training run. Reading them loads no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sami_pipeline.errors import first_fault

# What JSON and YAML have in their place is a list.
Names = Annotated[tuple[str, ...], Field(strict=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Parameters(BaseModel):
    """Known names and finite numbers, written as such; nothing is converted or guessed at.

    Raises:
        ValueError: one line that names the parameter and what is wrong with it.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(first_fault(error)) from None

    def replaced(self, **changes: Any) -> Self:
        """Return the same parameters but for some, checked again."""
        return type(self)(**{**dict(self), **changes})


class LoraParameters(_Parameters):
    """Low-rank adapters (arXiv 2106.09685) instead of full finetuning, through PEFT.

    Attributes:
        rank: r of the two factors.
        alpha: the adapters' output is scaled by alpha / rank.
        dropout: on the adapters' input.
        target_modules: names of the linear layers that get adapters; None takes all but the head.
        experts: adapt the experts of a mixture too, whose weights are no linear layers; they hold
            most of such a model.
        frozen_weights: dtype of the weights that the adapters are added to, while they are trained;
            "bfloat16" takes half the memory. Loses nothing where the model was published in bf16.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Share = 0.0
    target_modules: Names | None = None
    experts: bool = False
    frozen_weights: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _experts_have_no_dropout(self) -> Self:
        if self.experts and self.dropout:
            raise ValueError("dropout: must be 0 with experts, whose adapters can't have any")
        return self


class SamiTrainingConfig(_Parameters):
    """How one model is trained with SAMI; the defaults are those of the embedded small model.

    Attributes:
        epochs: passes over the grids.
        max_steps: stop after this many optimiser steps; None goes through all epochs.
        batch_size: grids per optimiser step.
        grids_per_micro_batch: grids per forward pass; the rest is gradient accumulation.
        optimiser: "adamw" or "rmsprop".
        learning_rate: peak learning rate.
        weight_decay: decoupled for AdamW, added to the gradient for RMSprop, as torch has it.
        adamw_betas: decay rates of AdamW's two moments.
        adamw_epsilon: added to the denominator of AdamW's update.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows the warm-up: "constant", or "linear" or "cosine" down to 0.
        max_gradient_norm: clip the gradient to this 2-norm; None does not clip.
        length_normalise: take the loss on mean log-probabilities per response token.
        train_on_eos: learn the end-of-sequence token of responses that ended by themselves.
        kl_beta: weight of the KL divergence to the initial model, over response tokens.
        nll_weight: weight of the negative log-likelihood of each constitution's own response, in
            nats a token, which keeps the model at text as the teacher writes it; the term that
            arXiv 2404.19733 adds to DPO (equation 1).
        weights: "float32" keeps fp32 weights and computes under autocast to ``compute_dtype``;
            "bfloat16_remainder" keeps bf16 weights and the 16 bits that they lack next to them, so
            that the optimiser updates exact fp32 weights in 2 bytes less a weight; "bfloat16" is
            the published mode, whose small updates round away. In both, gradients of micro-batches
            add up in bf16.
        optimiser_state: dtype of the optimiser's moments in the mode "bfloat16_remainder";
            in "bfloat16" they are rounded stochastically.
        memory: "single_pass", or "two_pass" to hold the activations of one constitution at a time.
        compute_dtype: autocast dtype of forward and backward when ``weights`` is "float32".
        head: how log-probabilities are taken from hidden states, see ``core.heads``.
        attention: "sdpa", or "flex_attention" on a GPU with long or many packed prompts.
        gradient_checkpointing: recompute each layer in the backward pass.
        compile_layers: compile the decoder layers; pays after minutes and needs a C++
            compiler. With gradient checkpointing the compiled layer is what is recomputed.
        pad_to_multiple: round row lengths up to a multiple, so that kernels see few shapes.
        reduce_every: when several workers add up their gradients: after each "micro_batch", or once
            a "step", which sends less and keeps the whole gradient on every worker.
        lora: train low-rank adapters, merged into the weights at the end; None trains all weights.
        trackers: where each step is logged besides the history, by the names accelerate knows:
            tensorboard, wandb, mlflow, ...; their packages must be installed.
        save_state_every: optimiser steps between saved states; 0 saves none by their number.
        save_state_minutes: minutes between saved states, whichever comes first; None saves none by
            time. Without both, none is saved.
        seed: decides the order of the grids, the adapters' first weights and every dropout.
    """

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = 8
    grids_per_micro_batch: PositiveInt = 1
    optimiser: Literal["adamw", "rmsprop"] = "adamw"
    learning_rate: PositiveFloat = 1e-5
    weight_decay: NonNegativeFloat = 0.0
    adamw_betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    adamw_epsilon: PositiveFloat = 1e-8
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_gradient_norm: PositiveFloat | None = 1.0
    length_normalise: bool = True
    train_on_eos: bool = True
    kl_beta: NonNegativeFloat = 0.0
    nll_weight: NonNegativeFloat = 0.0
    weights: Literal["float32", "bfloat16_remainder", "bfloat16"] = "float32"
    optimiser_state: Literal["float32", "bfloat16"] = "float32"
    memory: Literal["single_pass", "two_pass"] = "single_pass"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    head: Literal["auto", "chunked", "torch", "liger"] = "auto"
    attention: Literal["sdpa", "flex_attention"] = "sdpa"
    gradient_checkpointing: bool = False
    compile_layers: bool = False
    pad_to_multiple: PositiveInt = 1
    reduce_every: Literal["micro_batch", "step"] = "micro_batch"
    lora: LoraParameters | None = None
    trackers: Names = ()
    save_state_every: NonNegativeInt = 0
    save_state_minutes: PositiveFloat | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("compute_dtype", mode="before")
    @classmethod
    def _gradients_have_the_range_of_float32(cls, value: Any) -> Any:
        if value == "float16":
            raise ValueError(
                "float16 turns small gradients into 0 unless the loss is scaled, which is not "
                "done here; choose bfloat16, or float32 on a GPU without it"
            )
        return value

    @model_validator(mode="after")
    def _parameters_go_together(self) -> Self:
        if self.weights != "float32" and self.compute_dtype != "bfloat16":
            raise ValueError(
                f"compute_dtype: must be bfloat16 when weights is {self.weights}, "
                f"got {self.compute_dtype!r}"
            )
        if self.optimiser_state != "float32" and self.weights != "bfloat16_remainder":
            raise ValueError(
                "optimiser_state: is chosen only with weights: bfloat16_remainder; "
                "elsewhere the moments have the dtype of the weights"
            )
        if self.lora is not None and self.weights != "float32":
            raise ValueError(
                "weights: must be float32 with lora, whose adapters are small; the weights they "
                "are added to have lora.frozen_weights"
            )
        frozen = "float32" if self.lora is None else self.lora.frozen_weights
        if frozen != "float32" and self.compute_dtype != "bfloat16":
            raise ValueError(f"compute_dtype: must be bfloat16 with lora.frozen_weights: {frozen}")
        if self.lora is not None and self.lora.experts and self.compile_layers:
            raise ValueError(
                "compile_layers: can't be combined with lora.experts, whose adapters change the "
                "layers in every pass"
            )
        return self

    @property
    def saves_states(self) -> bool:
        """Whether states are saved, from which a killed training goes on."""
        return bool(self.save_state_every) or self.save_state_minutes is not None

    def check_many_workers(self) -> None:
        """Refuse what has not been verified with a model in shards.

        Raises:
            ValueError: names the parameter and the remedy.
        """
        refused = {"lora": (self.lora, None), "compile_layers": (self.compile_layers, False)}
        for name, (value, only) in refused.items():
            if value != only:
                choice = "null" if only is None else str(only).lower()
                raise ValueError(
                    f"{name}: is not there for several workers; set {name}: {choice}, or train "
                    "in one process"
                )
