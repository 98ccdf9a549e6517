"""Attention over a packed tree against masked attention written out over the whole row."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sami_pipeline.core import Grid, batched_grid_logprobs, grid_logprobs, tree_attention
from sami_pipeline.core.model_outputs import _attention_inputs
from sami_pipeline.core.packing import PackedTokens, Segment, pack
from sami_pipeline.core.probe import traits_of
from sami_pipeline.core.tree_attention import (
    _LARGE,
    TokenTree,
    _attend,
    _calls,
    _level_by_level,
    _MatmulAttention,
    _path_mask,
    _tree_of,
    tree_attention_forward,
    use_tree_attention,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import families

few = settings(deadline=None, max_examples=30)

prompts = st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=5), min_size=1, max_size=4)
responses = st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=4), min_size=1, max_size=3)
many_grids = st.lists(st.builds(Grid, prompts, responses), min_size=1, max_size=2)
windows = st.one_of(st.none(), st.integers(1, 9))

# A shared query, a prompt that begins another, and one that shares nothing.
GRID = Grid([[7, 8, 9, 10, 11], [7, 8, 9, 12], [7, 8, 9], [20, 21]], [[30, 31, 32], [40]])

LONG_GRID = Grid([[*range(50, 58), *prompt] for prompt in GRID.prompt_ids], GRID.response_ids)
WINDOW = 6  # that of the tiny models


def dense_mask(packed: PackedTokens, window: int | None) -> Tensor:
    """(T, T), what each token sees by the definition: each path attends causally on its own."""
    owner = [index for index, s in enumerate(packed.segments) for _ in range(s.length)]
    position = packed.position_ids[0].tolist()
    mask = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for q in range(len(owner)):
        path = {owner[q], *packed.segments[owner[q]].ancestors}
        for k in range(len(owner)):
            distance = position[q] - position[k]
            near = window is None or distance < window
            mask[q, k] = owner[k] in path and distance >= 0 and near
    return mask


def dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float):
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, value)


def random_states(
    length: int, heads: int, key_heads: int, dtype: torch.dtype, *, keys: int | None = None
) -> list[Tensor]:
    """Query, key and value that are leaves; a large scale makes the attention uneven."""
    generator = torch.Generator().manual_seed(length + heads)
    shapes = [(heads, length), (key_heads, keys or length), (key_heads, keys or length)]
    return [
        (1.5 * torch.randn(1, *shape, 8, generator=generator, dtype=torch.float64))
        .to(dtype)
        .requires_grad_()
        for shape in shapes
    ]


def uneven(output: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return (weights * output).sum()


# --- Masks ---


@few
@given(many_grids, st.sampled_from([1, 8]), windows)
def test_the_masks_of_all_segments_are_the_definition(grids, multiple, window):
    packed = pack(grids, pad_to_multiple=multiple)
    tree, like = TokenTree(packed.segments), torch.zeros(())
    expected = dense_mask(packed, window)
    places = torch.arange(sum(tree.lengths)).split(tree.lengths)
    for index, segment in enumerate(packed.segments):
        path = torch.cat([places[p] for p in (*segment.ancestors, index)])
        mask = tree.mask(segment, window, like)
        assert set(mask.unique().tolist()) <= {0.0, float("-inf")}
        assert (mask == 0).equal(expected[places[index]][:, path])
        # Nothing off the path is seen.
        assert expected[places[index]].sum() == (mask == 0).sum()


@few
@given(many_grids, st.sampled_from([1, 8]), windows)
def test_the_mask_of_flex_attention_is_the_definition(grids, multiple, window):
    packed = pack(grids, pad_to_multiple=multiple)
    length = packed.input_ids.shape[1]
    block_mask = TokenTree(packed.segments).block_mask(window, torch.device("cpu"))
    place = torch.arange(length)
    seen = block_mask.mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place[None, :])
    assert seen.equal(dense_mask(packed, window))
    assert seen.diagonal().all(), "a query without any key gives NaN"


def test_sliding_window_counts_positions_and_not_places_in_the_row():
    packed = pack([Grid([[10, 11, 12, 13]], [[30, 31, 32, 33], [40, 41]])])
    # Token 41 stands tenth in the row, at position 5: with a window of 3 it sees 3, 4 and 5.
    tree, leaf = TokenTree(packed.segments), packed.segments[2]
    assert tree.mask(leaf, 3, torch.zeros(()))[1].tolist() == [-torch.inf] * 3 + [0.0] * 3
    flex = tree.block_mask(3, torch.device("cpu")).mask_mod(0, 0, torch.tensor(9), torch.arange(10))
    assert flex.nonzero().flatten().tolist() == [3, 8, 9]


def test_masks_of_one_shape_are_made_once_and_those_of_other_kinds_kept_apart():
    packed = pack([GRID])
    tree, segment = TokenTree(packed.segments), packed.segments[1]
    plain = tree.mask(segment, None, torch.zeros(()))
    assert tree.mask(segment, None, torch.zeros(())) is plain
    assert tree.mask(segment, 100, torch.zeros(())) is plain, "a window beyond the path"
    assert not tree.mask(segment, 2, torch.zeros(())).equal(plain)
    assert tree.mask(segment, None, torch.zeros((), dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("length", "offset"), [(1, 0), (5, 0), (1, 6), (4, 3), (3, 9)])
def test_the_mask_that_a_gpu_knows_by_name_equals_the_written_one(length, offset):
    query, key, value = random_states(length, 4, 2, torch.float64, keys=offset + length)
    on_gpu = SimpleNamespace(is_cuda=True, dtype=query.dtype, device=query.device)
    named, written = _path_mask(length, offset, None, on_gpu), _path_mask(length, offset, None, key)
    assert type(named) is not torch.Tensor
    outputs = [
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        for mask in (named, written)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    # The fused kernels know no window.
    assert type(_path_mask(length, offset, 2, on_gpu)) is torch.Tensor


# --- Values and gradients ---


@pytest.fixture(scope="module", params=["segments", "levels"])
def walk(request):
    """What a CPU does, and what a GPU does, here on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "levels":
            patch.setattr(tree_attention, "_segment_by_segment", _level_by_level)
        yield request.param


@few
@given(many_grids, st.sampled_from([(4, 4), (4, 2), (6, 1)]), windows, st.sampled_from([1, 8]))
def test_values_and_gradients_equal_masked_attention_over_the_whole_row(
    walk, grids, heads, window, multiple
):
    packed = pack(grids, pad_to_multiple=multiple)
    states = random_states(packed.input_ids.shape[1], *heads, torch.float64)
    output, none = tree_attention_forward(
        torch.nn.Module(), *states, None, scaling=0.7, sliding_window=window,
        token_tree=TokenTree(packed.segments),
    )  # fmt: skip
    expected = dense_attention(*states, dense_mask(packed, window), 0.7)
    assert none is None
    assert output.is_contiguous()
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(uneven(output), states)
    expected_gradients = torch.autograd.grad(uneven(expected), states)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 3])
def test_the_operator_of_compiled_layers_gives_the_same_bit_by_bit(walk, dtype, window):
    packed = pack([GRID, LONG_GRID], pad_to_multiple=8)
    states = random_states(packed.input_ids.shape[1], 4, 2, dtype)
    tree = TokenTree(packed.segments)
    expected, _ = tree_attention_forward(
        torch.nn.Module(), *states, None, scaling=0.7, sliding_window=window, token_tree=tree
    )
    operator = torch.ops.sami_pipeline.tree_attention
    output = operator(*states, tree.table, 0.7, window)
    _tree_of.cache_clear()  # other trees may have come between
    assert output.equal(expected)
    assert output.is_contiguous()
    for one, other in zip(
        torch.autograd.grad(uneven(output), states),
        torch.autograd.grad(uneven(expected), states),
        strict=True,
    ):
        assert one.equal(other)
    assert _tree_of(tuple(map(tuple, tree.table.tolist()))).segments == packed.segments
    with FakeTensorMode() as mode:
        known = [mode.from_tensor(tensor) for tensor in (*states, tree.table)]
        assert operator(*known, 0.7, window).shape == output.shape


@pytest.mark.parametrize(
    ("n", "calls"), [(1, [1, 1, 1]), (2, [1, 2, 4]), (4, [1, 4, 16])], ids=["n1", "n2", "n4"]
)
def test_a_level_of_the_tree_is_one_call(n, calls):
    def ids(start: int, count: int) -> list[int]:
        return [start, *range(count - 1)]

    prompts = [[7] * 40 + ids(100 + i, 10 + i) for i in range(n)]
    grid = Grid(prompts or [[1]], [ids(200 + j, 30 - j) for j in range(n)])
    if n == 1:  # a second prompt, since a lone one is no tree of three levels
        grid = Grid([prompts[0], [7] * 40], grid.response_ids)
        calls = [1, 2, 1]
    assert [len(c.segments) for c in _calls(pack([grid]).segments)] == calls


@few
@given(many_grids, st.sampled_from([1, 64]))
def test_a_padded_call_computes_at_most_twice_the_scores_and_every_segment_once(grids, multiple):
    segments = pack(grids, pad_to_multiple=multiple).segments
    calls = _calls(segments)
    assert sorted(i for c in calls for i in c.segments) == list(range(len(segments)))
    for call in calls:
        parts = [segments[i] for i in call.segments]
        assert len({len(s.ancestors) for s in parts}) == 1
        if len(parts) > 1:
            scores = sum(s.length * (s.offset + s.length) for s in parts)
            assert len(parts) * call.length * call.keys <= 2 * scores


def test_a_large_segment_is_a_call_of_its_own_for_flash_attention():
    large = Segment(_LARGE // 2000 + 1, 2000, (0,))
    segments = (Segment(2000, 0, ()), large, Segment(5, 2000, (0,)), Segment(6, 2000, (0,)), large)
    assert [c.segments for c in _calls(segments)] == [(0,), (1,), (4,), (3, 2)]


@pytest.mark.parametrize("value_width", [4, 8])
def test_keys_are_taken_and_their_gradients_added_up_in_full_precision(value_width):
    """Each key's gradient is a sum over many segments, which 16-bit numbers must round once."""
    grid = Grid([[7, 8, 9, i] for i in range(10, 18)], [[30 + j, 31] for j in range(8)])
    packed = pack([grid])
    states = random_states(packed.input_ids.shape[1], 4, 2, torch.bfloat16)
    states[2] = states[2].detach()[..., :value_width].requires_grad_()
    tree = TokenTree(packed.segments)

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        own = [state.detach().to(dtype).requires_grad_() for state in states]
        output = _level_by_level(*own, tree, dropout=0.0, scale=0.35, window=None)
        return list(torch.autograd.grad(uneven(output.double()), own))

    for sixteen, exact in zip(gradients(torch.bfloat16), gradients(torch.float64), strict=True):
        assert (sixteen - exact).norm() <= 0.02 * exact.norm()


def test_scores_are_scaled_by_the_root_of_the_width_by_default():
    packed = pack([GRID])
    states = random_states(packed.input_ids.shape[1], 4, 2, torch.float64)
    output, _ = tree_attention_forward(
        torch.nn.Module(), *states, None, token_tree=TokenTree(packed.segments)
    )
    expected = dense_attention(*states, dense_mask(packed, None), 8**-0.5)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("length", "offset", "window"), [(5, 0, None), (4, 7, None), (6, 5, 3)])
def test_attention_by_matrix_products_equals_the_fused_one(heads, length, offset, window):
    def both(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        states = random_states(length, *heads, dtype, keys=offset + length)
        mask = _path_mask(length, offset, window, states[0])
        ours = _MatmulAttention.apply(*states, mask, 0.6)
        fused = F.scaled_dot_product_attention(
            *states, attn_mask=mask, scale=0.6, enable_gqa=heads[0] != heads[1]
        )
        return tuple([o, *torch.autograd.grad(uneven(o), states)] for o in (ours, fused))

    for ours, fused in zip(*both(torch.float32), strict=True):
        torch.testing.assert_close(ours, fused, rtol=1e-4, atol=1e-4)
    exact = both(torch.float64)[1]
    for ours, fused, value in zip(*both(torch.bfloat16), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert ours.shape == fused.shape
        # Of the same size as the error of the fused kernel, and small beside the values.
        error, fused_error = (ours - value).norm(), (fused - value).norm()
        assert error <= 2 * fused_error + 1e-3 * value.norm()
        assert error <= 0.06 * value.norm()


def test_the_derivative_of_the_matrix_products_is_the_numerical_one():
    states = random_states(3, 4, 2, torch.float64, keys=5)
    mask = _path_mask(3, 2, None, states[0])
    assert torch.autograd.gradcheck(
        lambda q, k, v: _MatmulAttention.apply(q, k, v, mask, 0.6), states
    )


@pytest.mark.parametrize(
    ("dtype", "dropout", "by_products"),
    [(torch.bfloat16, 0.0, True), (torch.bfloat16, 0.3, False), (torch.float32, 0.0, False)],
)
def test_matrix_products_serve_bf16_without_dropout_alone(dtype, dropout, by_products, monkeypatch):
    called = []
    real = _MatmulAttention.apply
    monkeypatch.setattr(
        tree_attention, "_MatmulAttention",
        SimpleNamespace(apply=lambda *inputs: called.append(1) or real(*inputs)),
    )  # fmt: skip
    states = random_states(3, 4, 2, dtype, keys=5)
    mask = _path_mask(3, 2, None, states[0])
    output = _attend(*states, mask, scale=0.5, dropout=dropout)
    assert output.shape == (1, 4, 3, 8)
    assert bool(called) == by_products


def test_autocast_reaches_the_attention_and_its_gradient():
    packed = pack([GRID])
    states = random_states(packed.input_ids.shape[1], 4, 2, torch.float32)
    expected = dense_attention(*states, dense_mask(packed, None), 8**-0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = tree_attention_forward(
            torch.nn.Module(), *states, None, token_tree=TokenTree(packed.segments)
        )
    assert output.dtype == torch.bfloat16
    assert (output - expected).norm() < 0.02 * expected.norm()
    gradients = torch.autograd.grad(uneven(output.float()), states)
    expected_gradients = torch.autograd.grad(uneven(expected), states)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected_gradient).norm() < 0.03 * expected_gradient.norm()


def test_dropout_changes_the_weights_and_keeps_segments_apart(walk):
    packed = pack([GRID])
    states = random_states(packed.input_ids.shape[1], 4, 2, torch.float32)
    tree = TokenTree(packed.segments)

    def attend(value: Tensor) -> Tensor:
        torch.manual_seed(3)
        return tree_attention_forward(
            torch.nn.Module(), *states[:2], value, None, dropout=0.5, token_tree=tree
        )[0]

    plain = tree_attention_forward(torch.nn.Module(), *states, None, token_tree=tree)[0]
    dropped = attend(states[2])
    assert not torch.allclose(dropped, plain)
    changed = states[2].detach().clone()
    changed[:, :, -1] += 100  # the last token is a leaf that nothing else sees
    assert attend(changed)[:, :-1].equal(dropped[:, :-1])


# --- In a model ---


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma3_text", "deepseek_v3", "gptj"])
def test_a_model_computes_the_same_level_by_level(family, monkeypatch):
    grids = [LONG_GRID, Grid([[5, 6], [5, 7, 8]], [[9] * 7, [10]])]
    computed = []
    for levels in (False, True):
        model = families.tiny_model(family)
        if levels:
            monkeypatch.setattr(tree_attention, "_segment_by_segment", _level_by_level)
        assert traits_of(model).layout == "shared_prefix"
        sums = [r.sums for r in batched_grid_logprobs(model, grids, pad_to_multiple=16)]
        (gradient := uneven(torch.cat([s.flatten() for s in sums]))).backward()
        computed.append([*sums, gradient, *(p.grad for p in model.parameters())])
    for one, other in zip(*computed, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "qwen3"])
def test_a_model_computes_and_generates_as_before(family, tiny_model, monkeypatch):
    model = tiny_model(family)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sdpa_attention_forward)
    ids = torch.tensor(
        [[0, 0, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 25, 26, 27, 8, 9]]
    )
    mask = (ids != 0).long()
    padded = {"input_ids": ids, "attention_mask": mask}
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    computed = []
    for use in (lambda: None, use_tree_attention):
        use()
        computed.append(
            [
                (model(**inputs).logits, model.generate(**inputs, **options))
                for inputs in ({"input_ids": ids[1:]}, padded)
            ]
        )
    assert AttentionInterface()["sdpa"] is tree_attention_forward
    for (before, text_before), (after, text_after) in zip(*computed, strict=True):
        assert after.equal(before)
        assert text_before.shape[1] > ids.shape[1]
        assert text_after.equal(text_before)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text"])
def test_a_layer_that_ignored_the_tree_would_show_nan(family, tiny_model, monkeypatch):
    model, inputs = tiny_model(family), {}
    monkeypatch.setattr(
        model.base_model, "forward",
        lambda forward=model.base_model.forward, **given: inputs.update(given) or forward(**given),
    )  # fmt: skip
    grid_logprobs(model, GRID)
    with_tree = model.base_model(**inputs).last_hidden_state
    assert isinstance(inputs.pop("token_tree"), TokenTree)
    without = model.base_model(**inputs).last_hidden_state
    assert with_tree.isfinite().all()
    assert without.isnan().all()


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", None),
        ("mistral", WINDOW),
        ("qwen2", {"full_attention": None, "sliding_attention": WINDOW}),
        ("qwen3", {"full_attention": None, "sliding_attention": WINDOW}),
        ("gemma", None),
        ("gemma3_text", {"full_attention": None, "sliding_attention": WINDOW}),
    ],
)
def test_flex_attention_gets_the_mask_of_each_kind_of_layer(family, windows, tiny_model):
    packed = pack([LONG_GRID], pad_to_multiple=8)
    model = tiny_model(family, attention="flex_attention")
    masks = _attention_inputs(model, packed, traits_of(model).mask_form)["attention_mask"]
    if not isinstance(windows, dict):
        masks, windows = {"every layer": masks}, {"every layer": windows}
    assert masks.keys() == windows.keys()
    place = torch.arange(packed.input_ids.shape[1])
    for kind, mask in masks.items():
        seen = mask.mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place[None, :])
        assert seen.equal(dense_mask(packed, windows[kind])), kind
    assert not dense_mask(packed, None).equal(dense_mask(packed, WINDOW)), "the window bites"


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")),
    reason="FlexAttention on a CPU is compiled, and neither c++ nor g++ is installed",
)
def test_flex_attention_computes_the_same(tiny_model):
    # One family with grouped heads and a window: each kind of layer is compiled for seconds.
    model, flex = tiny_model("mistral"), tiny_model("mistral", attention="flex_attention")
    expected = grid_logprobs(model, LONG_GRID).sums
    with torch.no_grad():
        actual = grid_logprobs(flex, LONG_GRID, layout="shared_prefix").sums
    assert flex.config._attn_implementation == "flex_attention"
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_segments_of_the_example_branch_where_they_should():
    segments = pack([GRID]).segments
    assert segments[0] == Segment(3, 0, ())
    assert len({s.ancestors for s in segments}) > 4
