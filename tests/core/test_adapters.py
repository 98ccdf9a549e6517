"""Low-rank adapters: put in, trained alone, switched off and merged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sami_pipeline.core import (
    Grid,
    LoraParameters,
    SamiTrainingConfig,
    grid_logprobs,
    sami_loss,
    train_sami,
)
from sami_pipeline.core.adapters import (
    add_adapters,
    expert_weights,
    merge_adapters,
    without_adapters,
)
from sami_pipeline.core.state import list_states

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import families

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
LINEAR_LAYERS = {
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
}  # fmt: skip


def config(**changes) -> SamiTrainingConfig:
    plain = {"compute_dtype": "float32", "learning_rate": 1e-2, "batch_size": 2}
    return SamiTrainingConfig(**{**plain, "lora": LoraParameters(rank=2), **changes})


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved_adapters(
    model: PreTrainedModel, parameters: LoraParameters, seed: int = 0
) -> list[torch.nn.Parameter]:
    """Add adapters that have been trained: their second factor isn't zero."""
    trainable = add_adapters(model, parameters, seed)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return trainable


def assert_plain(model: PreTrainedModel, like: PreTrainedModel) -> None:
    """No module of PEFT, none of its names, and everything trainable again."""
    assert [type(m) for m in model.modules()] == [type(m) for m in like.modules()]
    assert weights_of(model).keys() == weights_of(like).keys()
    assert not hasattr(model, "peft_config")
    assert all(p.requires_grad for p in model.parameters())


@pytest.fixture
def grids(random_grid) -> list[Grid]:
    return [random_grid(seed, 2) for seed in range(4)]


# --- Put in ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_first_the_model_computes_the_same_and_trains_fp32_adapters_alone(dtype, tiny_model):
    model = tiny_model("llama", dtype)
    before, names = model(input_ids=IDS).logits, set(weights_of(model))
    add_adapters(model, LoraParameters(rank=3), seed=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert model(input_ids=IDS).logits.equal(before)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        if "lora_" in name:
            assert parameter.dtype == torch.float32
            assert 3 in parameter.shape
        else:
            assert parameter.dtype == dtype
            assert name.replace(".base_layer", "") in names


def test_every_linear_layer_but_the_head_gets_one_unless_others_are_named(tiny_model):
    def adapted(**chosen) -> set[str]:
        model = tiny_model("llama")
        add_adapters(model, LoraParameters(**chosen), seed=0)
        return {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}

    assert adapted() == LINEAR_LAYERS
    assert adapted(target_modules=("q_proj", "down_proj")) == {"q_proj", "down_proj"}


def test_adapters_that_find_no_layer_are_refused(tiny_model):
    with pytest.raises(ValueError, match="nowhere_proj"):
        add_adapters(tiny_model("llama"), LoraParameters(target_modules=("nowhere_proj",)), seed=0)


def test_the_seed_alone_decides_the_first_weights(tiny_model):
    def first_weights(seed: int, caller: int) -> dict[str, Tensor]:
        model = tiny_model("llama")
        torch.manual_seed(caller)
        state = torch.get_rng_state()
        add_adapters(model, LoraParameters(rank=2), seed)
        assert torch.get_rng_state().equal(state), "the caller's random numbers go on as they were"
        return {n: w for n, w in weights_of(model).items() if "lora_A" in n}

    one, same, other = first_weights(4, 0), first_weights(4, 1), first_weights(5, 0)
    assert len(one) == 14
    assert all(one[name].equal(same[name]) for name in one)
    assert not any(one[name].equal(other[name]) for name in one)


# --- Switched off ---


def test_without_its_adapters_the_model_is_what_it_was(tiny_model):
    model, untouched = tiny_model("llama"), tiny_model("llama")
    moved_adapters(model, LoraParameters(rank=2))
    adapted = model(input_ids=IDS).logits
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not torch.allclose(adapted, untouched(input_ids=IDS).logits, atol=0.1)
    with without_adapters(model):
        assert model(input_ids=IDS).logits.equal(untouched(input_ids=IDS).logits)
    assert model(input_ids=IDS).logits.equal(adapted)
    with pytest.raises(KeyError), without_adapters(model):
        raise KeyError
    assert model(input_ids=IDS).logits.equal(adapted)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable


# --- Merged ---


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
def test_merging_computes_the_same_without_peft(family, tiny_model, tmp_path):
    model = tiny_model(family)
    trainable = moved_adapters(model, LoraParameters(rank=2, alpha=3.0))
    before = model(input_ids=IDS).logits
    merge_adapters(model, trainable)
    assert_plain(model, tiny_model(family))
    torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=1e-5, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert loaded(input_ids=IDS).logits.equal(model(input_ids=IDS).logits)


def test_what_is_merged_is_the_scaled_product_of_the_factors(tiny_model):
    model, start = tiny_model("llama"), tiny_model("llama")
    parameters = LoraParameters(rank=2, alpha=5.0, target_modules=("q_proj",))
    trainable = moved_adapters(model, parameters)
    factors = weights_of(model)
    merge_adapters(model, trainable)
    prefix = "model.layers.1.self_attn.q_proj"
    product = (
        factors[f"{prefix}.lora_B.default.weight"] @ factors[f"{prefix}.lora_A.default.weight"]
    )
    expected = weights_of(start)[f"{prefix}.weight"] + 5.0 / 2 * product
    torch.testing.assert_close(weights_of(model)[f"{prefix}.weight"], expected)


# --- In training ---


def test_training_changes_the_adapted_layers_alone_and_by_the_rank(tiny_model, grids):
    model, before = tiny_model("llama"), weights_of(tiny_model("llama"))
    chosen = config(lora=LoraParameters(rank=2, target_modules=("q_proj", "up_proj")), epochs=2)
    result = train_sami(model, None, grids, chosen, progress=False)
    assert result.model is model
    assert not model.training
    assert_plain(model, tiny_model("llama"))
    for name, weight in weights_of(model).items():
        if name.split(".")[-2] in ("q_proj", "up_proj"):
            strengths = torch.linalg.svdvals((weight - before[name]).double())
            assert strengths[1] > 1e-4
            assert strengths[2] < 1e-3 * strengths[1], "the update has the rank of the adapters"
        else:
            assert weight.equal(before[name]), name


def test_adapters_learn_and_the_merged_model_shows_it(tiny_model, grids, tmp_path):
    model = tiny_model("llama")
    history = train_sami(model, None, grids, config(epochs=12), progress=False).history
    assert history["loss"].iloc[:2].mean() > 0.3
    assert history["loss"].iloc[-2:].max() < 0.1
    assert (history["weights_moved"] > 0.3).all()
    losses = [sami_loss(grid_logprobs(model, grid).means).item() for grid in grids]
    assert max(losses) < 0.1
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert loaded(input_ids=IDS).logits.equal(model(input_ids=IDS).logits)


def test_a_bf16_model_can_carry_adapters_and_stays_bf16(tiny_model, grids):
    model = tiny_model("llama", torch.bfloat16)
    before = weights_of(model)
    chosen = config(compute_dtype="bfloat16", epochs=12)
    history = train_sami(model, None, grids, chosen, progress=False).history
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert history["loss"].iloc[-2:].max() < 0.2
    assert not weights_of(model)["model.layers.0.mlp.up_proj.weight"].equal(
        before["model.layers.0.mlp.up_proj.weight"]
    )


def test_the_seed_decides_the_trained_weights(tiny_model, grids):
    def trained(seed: int) -> dict[str, Tensor]:
        model = tiny_model("llama")
        train_sami(model, None, grids[:1], config(seed=seed, max_steps=1), progress=False)
        return weights_of(model)

    one, same, other = trained(1), trained(1), trained(2)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert one[name].equal(same[name])
    assert not one[name].equal(other[name])


def test_dropout_is_on_in_training_and_off_after_it(tiny_model, grids):
    def first_losses(dropout: float) -> list[float]:
        chosen = config(lora=LoraParameters(rank=4, dropout=dropout), epochs=2)
        return (
            train_sami(tiny_model("llama"), None, grids, chosen, progress=False)
            .history["loss"]
            .tolist()
        )

    plain, dropped = first_losses(0.0), first_losses(0.5)
    assert plain[0] == pytest.approx(dropped[0]), "adapters of zeros drop nothing"
    assert plain[-1] != pytest.approx(dropped[-1], rel=1e-3)
    assert dropped == first_losses(0.5)


def test_a_state_holds_the_adapters_alone(tiny_model, grids, tmp_path):
    chosen = config(save_state_every=1, max_steps=1)
    train_sami(tiny_model("llama"), None, grids, chosen, state_folder=tmp_path, progress=False)
    saved = load_file(list_states(tmp_path)[-1] / "model.safetensors")
    assert len(saved) == 28
    assert all("lora_" in name for name in saved)


def test_gradient_checkpointing_trains_the_adapters_to_the_same_weights(tiny_model, grids):
    trained = []
    for checkpointing in (False, True):
        model = tiny_model("llama")
        chosen = config(gradient_checkpointing=checkpointing, kl_beta=0.1)
        train_sami(model, None, grids, chosen, progress=False)
        trained.append(weights_of(model))
        assert not model.get_input_embeddings()._forward_hooks
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, rtol=1e-4, atol=1e-5)


def test_a_run_that_raises_leaves_a_plain_model(tiny_model, grids):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(FloatingPointError):
        train_sami(model, None, grids, config(), progress=False)
    assert_plain(model, tiny_model("llama"))


# --- Faults found ---


def test_a_refused_run_leaves_the_model_trainable(tiny_model, grids):
    model = tiny_model("llama")
    chosen = config(lora=LoraParameters(target_modules=("nowhere_proj",)))
    with pytest.raises(ValueError, match="nowhere_proj"):
        train_sami(model, None, grids, chosen, progress=False)
    assert all(p.requires_grad for p in model.parameters())


def test_weights_that_the_caller_froze_stay_frozen(tiny_model, grids):
    model = tiny_model("llama")
    model.get_input_embeddings().requires_grad_(False)
    train_sami(model, None, grids, config(max_steps=1), progress=False)
    assert not model.get_input_embeddings().weight.requires_grad


def test_an_adapter_on_the_head_is_trained_or_refused(tiny_model, grids):
    model, before = tiny_model("llama"), weights_of(tiny_model("llama"))
    chosen = config(lora=LoraParameters(target_modules=("q_proj", "lm_head")), epochs=2)
    try:
        train_sami(model, None, grids, chosen, progress=False)
    except ValueError:
        return
    assert not weights_of(model)["lm_head.weight"].equal(before["lm_head.weight"])


# --- Weights that are no linear layers ---


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_experts_get_adapters_that_switch_off_and_merge(family):
    model, plain = families.tiny_model(family), families.tiny_model(family)
    before = model(input_ids=IDS).logits
    trainable = add_adapters(model, LoraParameters(rank=2, experts=True), seed=0)
    assert model(input_ids=IDS).logits.allclose(before, atol=1e-6)
    adapted = [n for n, p in model.named_parameters() if "lora_B" in n and "expert" in n]
    assert len(adapted) == len(expert_weights(plain)) > 0
    with torch.no_grad():
        for name in adapted:
            model.get_parameter(name).normal_(0, 0.2)
    moved = model(input_ids=IDS).logits
    assert (moved - before).abs().max() > 1e-3
    with without_adapters(model):
        assert model(input_ids=IDS).logits.allclose(before, atol=1e-6)
    merge_adapters(model, trainable)
    assert_plain(model, plain)
    assert model(input_ids=IDS).logits.allclose(moved, atol=1e-5)


def test_what_has_no_adapters_is_said(tiny_model, grids, caplog):
    caplog.set_level("INFO")
    for experts in (False, True):
        model = families.tiny_model("mixtral")
        every = sum(p.numel() for p in model.parameters())
        share = 100 * sum(model.get_parameter(n).numel() for n in expert_weights(model)) / every
        caplog.clear()
        add_adapters(model, LoraParameters(rank=2, experts=experts), seed=0)
        left_out = f"{share:.1f} % of the weights are experts without adapters; lora.experts: true"
        assert (left_out in caplog.text) == (not experts)
    heads = 2 * 101 * 32 + 5 * 32 + 2 * 4 * 32  # embedding and output, norms, routers
    assert f"Adapters change layers that hold {100 * (1 - heads / every):.1f} %" in caplog.text
    with pytest.raises(ValueError, match=r"lora.experts: llama has none; leave it out"):
        add_adapters(tiny_model("llama"), LoraParameters(experts=True), seed=0)


def test_gpt2s_layers_are_linear_too(tiny_model, grids):
    model = tiny_model("gpt2")
    before = weights_of(model)
    history = train_sami(model, None, grids, config(epochs=4), progress=False).history
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    changed = {
        name.split(".")[-2] for name, w in weights_of(model).items() if w.ne(before[name]).any()
    }
    assert changed == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_frozen_weights_may_be_bf16_and_what_is_learnt_is_merged_in_fp32(family, grids):
    model = families.tiny_model(family)
    lora = LoraParameters(rank=2, frozen_weights="bfloat16", experts=family == "mixtral")
    chosen = config(lora=lora, compute_dtype="bfloat16", learning_rate=1e-4, max_steps=2)
    rounded = {name: weight.bfloat16().float() for name, weight in weights_of(model).items()}
    seen = []
    handle = model.register_forward_hook(
        lambda *_: seen.append({p.dtype for p in model.parameters() if not p.requires_grad})
    )
    history = train_sami(model, None, grids, chosen, progress=False).history
    handle.remove()
    assert seen[-1] == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history["weights_moved"].iloc[-1] > 0
    learnt = weights_of(model)["model.layers.0.self_attn.q_proj.weight"]
    base = rounded["model.layers.0.self_attn.q_proj.weight"]
    lost_in_bf16 = learnt.ne(base) & learnt.bfloat16().float().eq(base)
    assert lost_in_bf16.any()
    assert weights_of(model)["lm_head.weight"].equal(rounded["lm_head.weight"])


def test_a_model_that_peft_wraps_is_computed_and_trained_as_it_is(tiny_model, random_grid):
    peft = pytest.importorskip("peft")
    plain = tiny_model("llama")
    grids = [random_grid(seed, 2) for seed in (1, 2)]
    expected = grid_logprobs(plain, grids[0]).sums
    wrapped = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    )
    torch.testing.assert_close(grid_logprobs(wrapped, grids[0]).sums, expected)
    before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    chosen = config(lora=None, epochs=2, learning_rate=1e-2)
    result = train_sami(wrapped, None, grids, chosen, progress=False)
    assert result.model is wrapped
    moved = {name for name, p in wrapped.named_parameters() if not p.equal(before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    after = grid_logprobs(wrapped, grids[0]).sums
    assert (after - expected).abs().max() > 1e-3
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(grid_logprobs(merged, grids[0]).sums, after, rtol=1e-4, atol=1e-4)
