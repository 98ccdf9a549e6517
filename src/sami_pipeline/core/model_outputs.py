"""What a model computes at the positions that predict response tokens, whatever its family.

The model's own forward pass is taken. A hook before the output layer picks the states at the wanted
positions, so logits at other positions are never computed, and what a family does before that layer
is done. What it does to the logits afterwards (a factor, a soft cap) is given as a ``LogitForm``,
or else the model's own logits at these positions are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sami_pipeline.core.distributed import is_sharded
from sami_pipeline.core.heads import Head, token_kl, token_logprobs, token_logprobs_and_kl
from sami_pipeline.core.packing import PackedTokens
from sami_pipeline.core.tree_attention import TokenTree, use_tree_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How a model takes a ready mask: one for all layers, or one for each type of layer.
MaskForm = Literal["one", "by_layer_type"]


@dataclass(frozen=True)
class LogitForm:
    """How logits follow from the product of the head's input and its weights.

    Attributes:
        softcap: see ``token_logprobs``.
        scale: see ``token_logprobs``.
    """

    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class ResponseOutputs:
    """What a model computed at the positions that predict response tokens.

    Attributes:
        hidden: (N, H) states before the output layer, or the (N, V) logits where the form of the
            logits is not known.
        weight: (V, H) output embedding, or None where ``hidden`` are logits.
        bias: (V,) or None.
        form: how the logits follow from both.
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    form: LogitForm = LogitForm()

    def logprobs(self, targets: Tensor, head: Head, chunk_tokens: int | None) -> Tensor:
        """(N,) log-probabilities of the targets in nats."""
        if self.weight is None:
            return -F.cross_entropy(self.hidden, targets, reduction="none")
        return token_logprobs(
            self.hidden,
            self.weight,
            targets,
            bias=self.bias,
            softcap=self.form.softcap,
            scale=self.form.scale,
            head=head,
            chunk_tokens=chunk_tokens,
        )

    def logprobs_and_kl(
        self,
        targets: Tensor,
        reference: ResponseOutputs,
        head: Head,
        chunk_tokens: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Twice (N,): log-probabilities of the targets, KL divergence from the reference; nats."""
        if self.weight is None or reference.weight is None or self.form != reference.form:
            logp, logq = (outputs.logits().log_softmax(-1) for outputs in (self, reference))
            kl = (logp.exp() * (logp - logq)).sum(-1)
            return self.logprobs(targets, head, chunk_tokens), kl
        models = {"bias": self.bias, "reference_bias": reference.bias}
        form = {"softcap": self.form.softcap, "scale": self.form.scale}
        heads = (reference.hidden, reference.weight)
        if head in ("auto", "chunked"):
            return token_logprobs_and_kl(
                self.hidden, self.weight, targets, *heads, chunk_tokens=chunk_tokens,
                **models, **form,
            )  # fmt: skip
        kl = token_kl(self.hidden, self.weight, *heads, **models, **form)
        return self.logprobs(targets, head, chunk_tokens), kl

    def logits(self) -> Tensor:
        """(N, V) logits in fp32 (or fp64)."""
        if self.weight is None:
            return self.hidden
        products = F.linear(self.hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = products.to(torch.promote_types(products.dtype, torch.float32)) * self.form.scale
        cap = self.form.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def computing_model(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers that computes, without the wrapper that PEFT puts around it.

    Raises:
        ValueError: PEFT adds virtual tokens, which only its wrapper knows.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if any(c.is_prompt_learning for c in model.peft_config.values()):
        raise ValueError(
            "model: its PEFT method adds virtual tokens to the prompt, which grids don't have; use "
            "one that changes weights, such as LoRA"
        )
    return model.get_base_model()


def response_outputs(
    model: PreTrainedModel, tokens: PackedTokens, mask_form: MaskForm, form: LogitForm | None
) -> ResponseOutputs:
    """Return what a model computes at the positions that predict response tokens.

    Args:
        model: without a wrapper.
        tokens: the model's inputs.
        mask_form: how it takes a ready mask; only read for a token tree.
        form: of its logits; None takes its own logits.
    """
    head = model.get_output_embeddings()
    inputs = {
        "input_ids": tokens.input_ids,
        "use_cache": False,
        **_attention_inputs(model, tokens, mask_form),
    }
    # In shards the weights are together already, and a call of the model would gather them again.
    call = model.forward if is_sharded(model) else model
    if head is None:
        return ResponseOutputs(_exact(call(**inputs).logits.flatten(0, 1)[tokens.source_index]))
    with _head_input(head, tokens.source_index, keep=form is None) as taken:
        outputs = call(**inputs)
    if form is None:
        return ResponseOutputs(_exact(outputs.logits.flatten(0, 1)))
    return ResponseOutputs(taken[0], head.weight, getattr(head, "bias", None), form)


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _head_input(head: nn.Module, places: Tensor, *, keep: bool) -> Iterator[list[Tensor]]:
    """Take the states at some places before the output layer.

    Args:
        head: the output layer.
        places: (N,) into the flattened (rows · T) states.
        keep: let the head compute their logits too; else it hands one state through, since under
            autocast even a single position's logits would cost a copy of all its weights.

    Yields:
        A list that holds the (N, H) states after the forward pass.
    """
    taken: list[Tensor] = []

    def pick(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = given[0].flatten(0, -2)
        taken.append(states[places])
        return ((taken[0] if keep else states[:1].detach().clone())[None], *given[1:])

    hook = head.register_forward_pre_hook(pick)
    own = vars(head).get("forward")  # accelerate, for one, puts one there
    if not keep:
        head.forward = lambda state, *_, **__: state
    try:
        yield taken
    finally:
        hook.remove()
        if not keep:
            del head.forward
            if own is not None:
                head.forward = own


def _attention_inputs(
    model: PreTrainedModel, tokens: PackedTokens, mask_form: MaskForm
) -> dict[str, Any]:
    """Return what tells this model's attention which tokens see each other.

    Padded rows need nothing: their padding is on the right, where causal attention never looks, and
    without a mask the fastest kernels serve. Positions count from 0 by default.
    """
    if tokens.segments is None:
        return {}
    tree = TokenTree(tokens.segments)
    device = tokens.input_ids.device
    if model.config._attn_implementation == "flex_attention":
        mask = _in_form(mask_form, model, lambda window: tree.block_mask(window, device))
        return {"position_ids": tokens.position_ids, "attention_mask": mask}
    use_tree_attention()
    # transformers hands a ready 4D mask through. It is never read; were a layer to read it in
    # spite of the tree, its NaN would show.
    unread = torch.full((1, 1, 1, 1), float("nan"), device=device)
    return {
        "position_ids": tokens.position_ids,
        "attention_mask": _in_form(mask_form, model, lambda window: unread),
        "token_tree": tree,
    }


def _in_form(form: MaskForm, model: PreTrainedModel, mask: Callable[[int | None], Any]) -> Any:
    """Return a mask in the form that the model takes.

    A ready mask bypasses the model's own sliding window, so the window is part of it.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if form == "one":
        every_layer = getattr(config, "layer_types", None) is None
        return mask(window if every_layer else None)
    masks = {"full_attention": mask(None)}
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        masks["sliding_attention"] = mask(window)
    return masks
