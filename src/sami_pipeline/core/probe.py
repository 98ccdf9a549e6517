"""What a model can be trusted with, found by trying it once on a grid of a few tokens.

A token tree is right for a family whose layers mix tokens nowhere but in attention, and hand
attention all they are given. No list says which these are: the model itself computes a tiny grid as
a tree and as padded rows, with its own weights, and both must agree in values and gradients up to
rounding. Else its grids are laid out as rows, and the reason is logged.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sami_pipeline.core.distributed import current_workers, is_sharded
from sami_pipeline.core.grid import Grid
from sami_pipeline.core.model_outputs import (
    LogitForm,
    MaskForm,
    ResponseOutputs,
    computing_model,
    response_outputs,
)
from sami_pipeline.core.packing import Layout, PackedTokens, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attention that can keep the branches of a tree apart.
_TREE_ATTENTIONS = ("sdpa", "flex_attention")
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Settings that let attention skip tokens once a row is longer than the probe's.
_SELECTIVE = (
    "attention_chunk_size", "attention_window_size", "index_topk", "local_attention_window_len",
    "window_size",
)  # fmt: skip
# Shorter than the probe's rows, so that a window which a family forgets to hand on shows.
_WINDOW = 5
# Up to this size a 16-bit model is judged by a copy in fp32, where rounding hides nothing.
_COPIED_BYTES = 2**30


@dataclass(frozen=True)
class Traits:
    """What a model can be trusted with.

    Attributes:
        layout: of its grids.
        reason: for the layout, as it is logged.
        mask_form: how it takes a ready mask.
        logits: their form; None takes the model's own logits.
        refusal: why its log-probabilities can't be taken at all, or None.
    """

    layout: Layout
    reason: str
    mask_form: MaskForm = "one"
    logits: LogitForm | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class _Tolerance:
    """How far two computations of the same may be apart.

    Attributes:
        values: in nats a token, or as a share of larger log-probabilities.
        gradients: norm of the difference as a share of the norm.
        unmoved: nats a token by which other responses may change a response's values.
        logits: as a share of the largest.
    """

    values: float
    gradients: float
    unmoved: float
    logits: float


# Also of an fp64 model: many families' layers round to fp32 inside.
_THIRTY_TWO_BITS = _Tolerance(3e-4, 1e-3, 1e-5, 1e-4)
_SIXTEEN_BITS = _Tolerance(0.3, 0.5, 0.02, 0.02)

_known: WeakKeyDictionary[nn.Module, dict[str, Traits]] = WeakKeyDictionary()


def choose_layout(model: PreTrainedModel) -> tuple[Layout, str]:
    """Return the layout that this model can be trusted with, and why."""
    traits = traits_of(model)
    return traits.layout, traits.reason


def traits_of(model: PreTrainedModel) -> Traits:
    """Return what a model can be trusted with; it is tried when it is first asked about.

    Its mode, gradients and random numbers stay as they are.
    """
    model = computing_model(model)
    known = _known.setdefault(model, {})
    attention = model.config._attn_implementation
    if attention not in known:
        if is_sharded(model):
            raise RuntimeError("a model must be tried before it is cut into shards")
        known[attention] = _found_out(model)
    return known[attention]


def agree_on_layout(model: PreTrainedModel) -> tuple[Layout, str]:
    """Return as ``choose_layout`` does what the first worker has found out, to all workers.

    The others need no weights for it. All must ask at once.
    """
    workers = current_workers()
    if workers.count > 1:
        found = json.dumps(asdict(traits_of(model))) if workers.is_first else ""
        fields = json.loads(workers.told(found))
        if fields["logits"] is not None:
            fields["logits"] = LogitForm(**fields["logits"])
        computing = computing_model(model)
        known = _known.setdefault(computing, {})
        known[computing.config._attn_implementation] = Traits(**fields)
    return choose_layout(model)


def take_over_traits(model: PreTrainedModel, copied: PreTrainedModel) -> None:
    """Let a copy of a model be trusted with the same, without trying it again."""
    original = computing_model(model)
    _known[computing_model(copied)] = dict(_known.get(original, {}))


def _found_out(model: PreTrainedModel) -> Traits:
    if any(p.is_meta or isinstance(p, FakeTensor) for p in model.parameters()):
        return _assumed(model)
    attention = model.config._attn_implementation
    if attention == "flex_attention" and model.device.type == "cpu":
        # There it is compiled for seconds and has no gradient; its masks are the same rules.
        with _attention(model, "sdpa"):
            return replace(traits_of(model))
    weights = [p for p in model.parameters() if p.is_floating_point()]
    small = sum(p.numel() for p in weights) * 4 <= _COPIED_BYTES
    if small and any(p.dtype in (torch.bfloat16, torch.float16) for p in weights):
        return _tried(copy.deepcopy(model).float())
    return _tried(model)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _assumed(model: PreTrainedModel) -> Traits:
    """Return what the settings of a model without data say; used where memory is estimated."""
    config = model.config.get_text_config()
    why_not = _no_tree(model)
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale = 1.0 / config.logits_scaling
    return Traits(
        "repeated" if why_not else "shared_prefix",
        why_not or f"{config.model_type} is assumed to take token trees",
        _mask_forms(model)[0],
        LogitForm(_soft_cap(config), float(scale)),
    )


def _tried(model: PreTrainedModel) -> Traits:
    name = model.config.model_type
    device = model.device.type
    with (
        # The caller may only want values; what is tried has gradients all the same.
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device, enabled=False),
        _undisturbed(model),
    ):
        trial = _Trial(model)
        try:
            rows = trial.measure(trial.grid, "repeated", "one")
            alone = trial.measure(
                Grid(trial.grid.prompt_ids[:1], trial.grid.response_ids[:1]), "repeated", "one"
            )
        except torch.OutOfMemoryError:
            raise
        # Each family has its own ways to fail.
        except Exception as error:
            return Traits("repeated", "", refusal=f"{name}: can't compute a grid ({_short(error)})")
        if not rows.is_finite():
            # Training says at which step and what to do.
            return Traits("repeated", f"{name} gives log-probabilities that are not finite")
        if not trial.close(rows.values[:1, :1], alone.values):
            return Traits(
                "repeated",
                "",
                refusal=f"{name}: its log-probabilities change with what follows in the row or "
                "lies in other rows, so it is no causal language model",
            )
        logits = trial.logit_form(rows.outputs)
        if why_not := _no_tree(model):
            return Traits("repeated", why_not, logits=logits)
        reasons = []
        for form in _mask_forms(model):
            try:
                reason = trial.difference(rows, form)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                reason = f"{name} can't compute a token tree ({_short(error)})"
            if reason is None:
                attention = model.config._attn_implementation
                taken = f"{name} with {attention} attention takes token trees: one of a few tokens "
                return Traits("shared_prefix", taken + "equals separate rows", form, logits)
            reasons.append(reason)
        return Traits("repeated", reasons[0], logits=logits)


def _no_tree(model: PreTrainedModel) -> str | None:
    """Return why a model's settings rule a token tree out, or None."""
    config = model.config.get_text_config()
    attention = model.config._attn_implementation
    if attention not in _TREE_ATTENTIONS:
        return f"{attention!r} attention can't keep the branches of a token tree apart"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if others:
        return f"{config.model_type} has layers of the type {others[0]!r}"
    for name in _SELECTIVE:
        if getattr(config, name, None):
            return f"{config.model_type} leaves tokens out by {name}"
    return None


def _mask_forms(model: PreTrainedModel) -> tuple[MaskForm, ...]:
    if getattr(model.config.get_text_config(), "layer_types", None):
        return ("by_layer_type", "one")
    return ("one", "by_layer_type")


def _soft_cap(config: Any) -> float | None:
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if getattr(config, name, None):
            return float(getattr(config, name))
    return None


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@dataclass(frozen=True)
class _Measured:
    """A grid's log-probabilities a token, and their gradient by what is added to the embedding.

    Attributes:
        values: (n_c, n_r) nats a token.
        gradient: (positions, H).
        outputs: what they were taken from.
    """

    values: Tensor
    gradient: Tensor
    outputs: ResponseOutputs

    def is_finite(self) -> bool:
        return bool(self.values.isfinite().all() and self.gradient.isfinite().all())


class _Trial:
    """A tiny grid, computed by one model in several ways."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.embedding = model.get_input_embeddings()
        wide = model.dtype in (torch.float32, torch.float64)
        self.tolerance = _THIRTY_TWO_BITS if wide else _SIXTEEN_BITS
        generator = random.Random(0)
        vocabulary = self.embedding.weight.shape[0]

        def ids(count: int) -> list[int]:
            return generator.sample(range(vocabulary), min(count, vocabulary))

        shared, prompts, responses = ids(3), [ids(2), ids(3)], [ids(4), ids(3)]
        self.grid = Grid([shared + prompt for prompt in prompts], responses)
        self.other = Grid(self.grid.prompt_ids, [ids(4), responses[1]])

    def measure(
        self, grid: Grid, layout: Layout, form: MaskForm, *, with_gradient: bool = True
    ) -> _Measured:
        """Compute a grid; its gradient is that of a sum in which every cell counts differently."""
        tokens = pack([grid], layout=layout, device=self.model.device)
        # Added to the embedding of every token at a position: the same variable in every layout,
        # and much smaller than the weights, which may be frozen.
        added = torch.zeros(
            int(tokens.position_ids.max()) + 1,
            self.embedding.weight.shape[1],
            dtype=self.model.dtype,
            device=self.model.device,
            requires_grad=True,
        )
        with _added_to(self.embedding, tokens, added), torch.set_grad_enabled(with_gradient):
            outputs = response_outputs(self.model, tokens, form, None)
            logprobs = outputs.logprobs(tokens.target_ids, "chunked", None)
            values = torch.stack([cell.mean() for cell in logprobs.split(tokens.cell_lengths)])
        gradient = added.detach()
        if with_gradient:
            weights = torch.linspace(-1, 2, len(values), device=values.device).to(values.dtype)
            gradient = torch.autograd.grad((weights * values).sum(), added)[0]
        return _Measured(values.detach().view(grid.shape), gradient.detach(), outputs)

    def close(self, actual: Tensor, expected: Tensor) -> bool:
        """Whether values are the same up to rounding."""
        scale = max(1.0, expected.abs().max().item())
        return (actual - expected).abs().max().item() <= self.tolerance.values * scale

    def difference(self, rows: _Measured, form: MaskForm) -> str | None:
        """Return in what a tree differs from rows, or None."""
        name = self.model.config.model_type
        with _narrow_windows(self.model) as narrowed:
            if narrowed:
                rows = self.measure(self.grid, "repeated", form)
            tree = self.measure(self.grid, "shared_prefix", form)
            other = self.measure(self.other, "shared_prefix", form, with_gradient=False)
        if not tree.is_finite():
            return f"{name} hands its attention no token tree"
        if not self.close(tree.values, rows.values):
            apart = (tree.values - rows.values).abs().max().item()
            return f"{name} computes a token tree otherwise than rows ({apart:.2g} nats a token)"
        moved = (other.values - tree.values)[:, 1].abs().max().item()
        scale = max(1.0, tree.values.abs().max().item())
        if moved > self.tolerance.unmoved * scale:
            return f"{name} lets responses of a token tree see each other"
        apart = (tree.gradient - rows.gradient).norm() / rows.gradient.norm().clamp_min(1e-30)
        if not apart <= self.tolerance.gradients:
            return f"{name} has other gradients on a token tree than on rows ({apart:.2g})"
        return None

    def logit_form(self, own: ResponseOutputs) -> LogitForm | None:
        """Return the form of the model's logits, if one gives those that it computed itself."""
        head = self.model.get_output_embeddings()
        vocabulary = own.hidden.shape[1]
        # Exactly a linear layer: an adapter in its place, or a scale of its own, would be left out.
        if type(head).forward is not nn.Linear.forward or head.weight.shape[0] != vocabulary:
            return None
        tokens = pack([self.grid], layout="repeated", device=self.model.device)
        with torch.no_grad():
            try:
                parts = response_outputs(self.model, tokens, "one", LogitForm())
            except torch.OutOfMemoryError:
                raise
            # What it does with its logits may take their shape for granted.
            except Exception:
                return None
            if parts.hidden.shape[-1] != head.weight.shape[1]:
                return None
            expected = own.hidden.detach()
            errors = {
                form: (replace(parts, form=form).logits() - expected).abs().max().item()
                for form in _logit_forms(self.model.config.get_text_config())
            }
        best = min(errors, key=errors.__getitem__)
        scale = max(1e-3, expected.abs().max().item())
        return best if errors[best] <= self.tolerance.logits * scale else None


def _logit_forms(config: Any) -> list[LogitForm]:
    """Return the forms that the numbers in a configuration allow, the plain one first."""
    scales = [1.0]
    for name, value in vars(config).items():
        named = "scal" in name or "multiplier" in name
        if named and isinstance(value, int | float) and not isinstance(value, bool) and value:
            scales += [float(value), 1.0 / value]
    caps = dict.fromkeys([None, _soft_cap(config)])
    return [LogitForm(cap, scale) for cap in caps for scale in dict.fromkeys(scales)]


@contextmanager
def _added_to(embedding: nn.Module, tokens: PackedTokens, added: Tensor) -> Iterator[None]:
    hook = embedding.register_forward_hook(
        lambda module, given, output: output + added[tokens.position_ids]
    )
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Take dropout out, and leave modes and random numbers as they were."""
    training = {module: module.training for module in model.modules()}
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, was in training.items():
            module.training = was


@contextmanager
def _narrow_windows(model: PreTrainedModel) -> Iterator[bool]:
    """Make sliding windows shorter than the probe's rows; yield whether there is one."""
    configs = [model.config, model.config.get_text_config()]
    configs += [module.config for module in model.modules() if hasattr(module, "config")]
    owners = {id(owner): owner for owner in [*configs, *model.modules()]}.values()
    before = [
        (owner, value)
        for owner in owners
        for value in [getattr(owner, "sliding_window", None)]
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    try:
        for owner, value in before:
            owner.sliding_window = min(value, _WINDOW)
        yield bool(before)
    finally:
        for owner, value in before:
            owner.sliding_window = value
