"""Packed linear layers give what the layers gave, to the last bit."""

import pytest
import torch
from torch import nn

from sami_pipeline.engines.packed_linear import PackedLinear, pack_linear_layers
from tests.engines.test_rows import small_model

packs = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@packs
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPTNeoX", "GptOss", "GPT2"])
@torch.inference_mode()
def test_a_models_logits_are_the_same_to_the_last_bit(family):
    model = small_model(family).bfloat16()
    tokens = torch.arange(3, 45).view(6, 7)
    expected = [model(tokens[:rows]).logits for rows in (1, 6)]
    assert pack_linear_layers(model) > 0
    for rows, logits in zip((1, 6), expected, strict=True):
        assert torch.equal(model(tokens[:rows]).logits, logits)


@packs
@torch.inference_mode()
def test_states_that_are_not_contiguous_are_read_as_they_are():
    layer = nn.Linear(48, 20, dtype=torch.bfloat16)
    states = torch.randn(4, 48, 3, dtype=torch.bfloat16).transpose(1, 2)
    assert torch.equal(PackedLinear(layer)(states), layer(states.contiguous()))


@packs
def test_a_shared_weight_stays_with_the_embedding_and_is_read_back():
    model = small_model("Llama").bfloat16()
    model.lm_head.weight = model.get_input_embeddings().weight
    shared = model.get_input_embeddings().weight.clone()
    pack_linear_layers(model)
    assert isinstance(model.lm_head, PackedLinear)
    assert torch.equal(model.lm_head.weight, shared)
    assert torch.equal(model.get_input_embeddings().weight, shared)


def test_weights_in_fp32_are_left_as_they_are():
    model = small_model("Llama")
    assert pack_linear_layers(model) == 0
    assert type(model.lm_head) is nn.Linear


@packs
def test_a_layer_that_does_more_than_the_product_is_left_as_it_is():
    class Scaled(nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    model = nn.Sequential(nn.Linear(8, 8), Scaled(8, 8)).bfloat16()
    assert pack_linear_layers(model) == 1
    assert type(model[1]) is Scaled
