"""Log-probabilities of grids against a loop that calls the model once for every cell."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sami_pipeline.core import (
    Grid,
    TextGrid,
    batched_grid_logprobs,
    grid_accuracy,
    grid_logprobs,
    mi_lower_bound,
    sami_loss,
)
from sami_pipeline.core.logprobs import choose_layout
from sami_pipeline.core.model_outputs import _attention_inputs
from sami_pipeline.core.packing import pack, packed_length
from sami_pipeline.core.probe import traits_of

SHARED = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi", "phi3", "granite",
    "cohere", "mixtral",
]  # fmt: skip
REPEATED = ["gemma2", "recurrent_gemma"]
# The others round to fp32 inside (eager softmax, router, layer norm) whatever their dtype.
EXACT_IN_FP64 = [family for family in SHARED if family not in ("cohere", "mixtral")]


def one_cell_at_a_time(model: PreTrainedModel, grid: Grid) -> Tensor:
    """(n_c, n_r) summed log-probabilities: one plain call a cell, one addition a token."""
    rows = []
    for prompt in grid.prompt_ids:
        cells = []
        for response in grid.response_ids:
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            cell = 0.0
            for step, token in enumerate(response):
                cell = cell + logits[len(prompt) + step - 1].log_softmax(-1)[token]
            cells.append(cell)
        rows.append(torch.stack(cells))
    return torch.stack(rows)


def uneven(sums: Tensor) -> Tensor:
    """A scalar in which every cell has another weight, so that none can stand in for another."""
    weights = torch.linspace(-1.0, 2.0, sums.numel(), dtype=sums.dtype).view_as(sums)
    return (weights * sums).sum()


def gradients(model: PreTrainedModel, scalar: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    scalar.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float):
    assert actual.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        difference = (actual[name] - gradient).abs().max().item()
        assert difference <= tolerance * scale, f"{name}: off by {difference:.3g} of {scale:.3g}"


# --- The same numbers as a plain loop ---


@pytest.mark.parametrize("family", EXACT_IN_FP64)
def test_values_and_gradients_equal_one_call_per_cell_in_fp64(family, tiny_model, random_grid):
    model, grid = tiny_model(family, torch.float64), random_grid(1, 3)
    expected = one_cell_at_a_time(model, grid)
    expected_gradients = gradients(model, uneven(expected))
    result = grid_logprobs(model, grid)
    assert result.sums.dtype == torch.float64
    torch.testing.assert_close(result.sums, expected, rtol=1e-9, atol=1e-9)
    assert_same_gradients(gradients(model, uneven(result.sums)), expected_gradients, 1e-9)


@pytest.mark.parametrize("family", SHARED + REPEATED)
def test_values_and_gradients_equal_one_call_per_cell_in_fp32(family, tiny_model, random_grid):
    model, grid = tiny_model(family), random_grid(2, 2, 3)
    expected = one_cell_at_a_time(model, grid)
    expected_gradients = gradients(model, uneven(expected))
    result = grid_logprobs(model, grid)
    torch.testing.assert_close(result.sums, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients(model, uneven(result.sums)), expected_gradients, 1e-3)


@pytest.mark.parametrize("family", EXACT_IN_FP64)
def test_both_layouts_give_the_same_values_and_gradients_in_fp64(family, tiny_model, random_grid):
    model, grid = tiny_model(family, torch.float64), random_grid(3, 4)
    results, grads = {}, {}
    for layout in ("shared_prefix", "repeated"):
        results[layout] = grid_logprobs(model, grid, layout=layout).sums
        grads[layout] = gradients(model, uneven(results[layout]))
    torch.testing.assert_close(results["shared_prefix"], results["repeated"], rtol=1e-9, atol=1e-9)
    assert_same_gradients(grads["shared_prefix"], grads["repeated"], 1e-9)


@pytest.mark.parametrize("family", SHARED)
def test_both_layouts_agree_loosely_in_bf16(family, tiny_model, random_grid):
    model, grid = tiny_model(family, torch.bfloat16), random_grid(4, 2)
    shared = grid_logprobs(model, grid, layout="shared_prefix")
    repeated = grid_logprobs(model, grid, layout="repeated")
    assert shared.sums.dtype == torch.float32
    torch.testing.assert_close(shared.means, repeated.means, rtol=0.05, atol=0.15)


# --- Prompts that share a query ---


def grid_with_shared_query(seed: int, n: int) -> Grid:
    """Return a grid of n prompts that begin with the same 10 tokens and branch after them.

    The third begins like the second, and the fourth is where the second ends: a tree of three
    levels, one prompt of which is the beginning of others. Sliding windows end inside the query.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 101, (length,), generator=generator).tolist()

    query, second = ids(10), ids(3)
    prompts = [query + ids(4), query + second + ids(2), query + second + ids(5), query + second]
    return Grid(prompts[:n], [ids(5), ids(1), ids(8), ids(3)][:n])


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("family", SHARED)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)], ids=["fp64", "fp32"]
)
def test_a_shared_query_gives_the_values_and_gradients_of_separate_rows(
    dtype, tolerance, family, n, tiny_model
):
    if dtype == torch.float64 and family not in EXACT_IN_FP64:
        tolerance, dtype = 2e-4, torch.float32
    model, grid = tiny_model(family, dtype), grid_with_shared_query(n, n)
    assert packed_length(grid) < packed_length(grid, "repeated") / 2, "much is shared"
    results, grads = {}, {}
    for layout in ("shared_prefix", "repeated"):
        results[layout] = grid_logprobs(model, grid, layout=layout).sums
        grads[layout] = gradients(model, uneven(results[layout]))
    torch.testing.assert_close(
        results["shared_prefix"], results["repeated"], rtol=tolerance, atol=tolerance
    )
    assert_same_gradients(grads["shared_prefix"], grads["repeated"], 5 * tolerance)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("family", SHARED)
def test_a_shared_query_is_as_exact_in_bf16_as_separate_rows(family, n, tiny_model):
    model, grid = tiny_model(family, torch.bfloat16), grid_with_shared_query(n, n)
    exact = copy.deepcopy(model).float()  # the same weights, computed with in fp32
    sums, grads = {}, {}
    for name, chosen, layout in (
        ("tree", model, "shared_prefix"), ("rows", model, "repeated"), ("exact", exact, "repeated"),
    ):  # fmt: skip
        sums[name] = grid_logprobs(chosen, grid, layout=layout).sums
        found = gradients(chosen, uneven(sums[name]))
        grads[name] = torch.cat([found[key].float().flatten() for key in sorted(found)])
    assert sums["tree"].dtype == torch.float32
    error = {name: (grads[name] - grads["exact"]).norm() for name in ("tree", "rows")}
    assert error["tree"] <= 2 * error["rows"]
    # These amplify any rounding, in separate rows by as much.
    share = 0.5 if family in ("gemma", "granite") else 0.1
    assert error["tree"] < share * grads["exact"].norm()
    counts = torch.tensor([len(y) for y in grid.response_ids])
    torch.testing.assert_close(sums["tree"] / counts, sums["rows"] / counts, rtol=0.05, atol=0.2)


def test_a_shared_query_under_autocast_is_as_exact_as_separate_rows(tiny_model):
    model, grid = tiny_model("llama"), grid_with_shared_query(1, 4)
    exact = gradients(model, uneven(grid_logprobs(model, grid).sums))
    error = {}
    for layout in ("shared_prefix", "repeated"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sums = grid_logprobs(model, grid, layout=layout).sums
        found = gradients(model, uneven(sums))
        error[layout] = sum((found[name] - exact[name]).norm() ** 2 for name in exact) ** 0.5
    assert error["shared_prefix"] <= 2 * error["repeated"]


@pytest.mark.parametrize("family", EXACT_IN_FP64)
def test_identical_prompts_give_identical_rows(family, tiny_model, random_grid):
    model, grid = tiny_model(family, torch.float64), random_grid(18, 2)
    twice = Grid([*grid.prompt_ids, grid.prompt_ids[0]], grid.response_ids)
    sums = grid_logprobs(model, twice).sums
    torch.testing.assert_close(sums[:2], grid_logprobs(model, grid).sums, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sums[2], sums[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_gradient_checkpointing_changes_nothing(family, tiny_model, random_grid):
    model, grid = tiny_model(family, torch.float64), random_grid(5, 2)
    plain = gradients(model, uneven(grid_logprobs(model, grid).sums))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    result = grid_logprobs(model, grid)
    assert_same_gradients(gradients(model, uneven(result.sums)), plain, 1e-9)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7])
def test_chunked_head_changes_nothing(chunk_tokens, tiny_model, random_grid):
    model, grid = tiny_model("gemma3_text", torch.float64), random_grid(6, 3)
    plain = grid_logprobs(model, grid)
    plain_gradients = gradients(model, uneven(plain.sums))
    chunked = grid_logprobs(model, grid, head="chunked", chunk_tokens=chunk_tokens)
    torch.testing.assert_close(chunked.sums, plain.sums, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(model, uneven(chunked.sums)), plain_gradients, 1e-9)


# --- Which tokens count ---


def test_rows_are_constitutions_and_columns_are_responses(tiny_model, random_grid):
    model, grid = tiny_model("llama"), random_grid(7, 2, 4)
    result = grid_logprobs(model, grid)
    assert result.sums.shape == (2, 4)
    assert result.token_counts.tolist() == [len(y) for y in grid.response_ids]
    for i in range(2):
        for j in range(4):
            alone = grid_logprobs(model, Grid([grid.prompt_ids[i]], [grid.response_ids[j]]))
            torch.testing.assert_close(result.sums[i, j], alone.sums[0, 0], rtol=1e-4, atol=1e-4)


def test_means_divide_each_column_by_its_own_length(tiny_model):
    model = tiny_model("llama")
    result = grid_logprobs(model, Grid([[5, 6], [7, 8, 9]], [[10, 11, 12, 13], [14]]))
    assert result.token_counts.tolist() == [4, 1]
    torch.testing.assert_close(result.means[:, 0], result.sums[:, 0] / 4)
    torch.testing.assert_close(result.means[:, 1], result.sums[:, 1])
    assert result.normalised(True).equal(result.means)
    assert result.normalised(False).equal(result.sums)


@pytest.mark.parametrize("family", SHARED)
def test_the_first_token_of_every_response_is_predicted_by_the_prompt_alone(family, tiny_model):
    model = tiny_model(family)
    prompts, responses = [[5, 6, 7, 8], [9, 10]], [[20], [21], [22]]
    result = grid_logprobs(model, Grid(prompts, responses))
    for i, prompt in enumerate(prompts):
        logprobs = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(result.sums[i], logprobs[[20, 21, 22]], rtol=1e-4, atol=1e-4)


def test_prompt_tokens_do_not_count(tiny_model):
    # The probabilities of all one-token responses sum to one: nothing else is in the sum.
    model = tiny_model("llama")
    grid = Grid([[5, 6, 7], [8]], [[token] for token in range(101)])
    totals = grid_logprobs(model, grid).sums.exp().sum(dim=1)
    torch.testing.assert_close(totals, torch.ones(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SHARED)
def test_a_response_does_not_see_the_ones_before_it(family, tiny_model, random_grid):
    model = tiny_model(family)
    grid = random_grid(8, 2, 3)
    changed = [(token + 1) % 100 for token in grid.response_ids[0]]
    other = Grid(grid.prompt_ids, [changed, *grid.response_ids[1:]])
    first, second = grid_logprobs(model, grid).sums, grid_logprobs(model, other).sums
    assert not torch.equal(first[:, 0], second[:, 0])
    assert torch.equal(first[:, 1:], second[:, 1:])


@pytest.mark.parametrize("family", EXACT_IN_FP64)
def test_the_order_and_number_of_the_responses_does_not_matter(family, tiny_model, random_grid):
    model, grid = tiny_model(family, torch.float64), random_grid(9, 2, 4)
    sums = grid_logprobs(model, grid).sums
    order = [2, 0, 3]
    other = Grid(grid.prompt_ids, [grid.response_ids[j] for j in order])
    torch.testing.assert_close(grid_logprobs(model, other).sums, sums[:, order], rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma3_text"])
def test_the_sliding_window_of_these_tests_bites(family, tiny_model, random_grid):
    grid = random_grid(10, 2)
    narrow = tiny_model(family)
    wide = tiny_model(family)
    for module in wide.modules():
        if hasattr(module, "sliding_window"):
            module.sliding_window = 100
    wide.config.sliding_window = 100
    difference = grid_logprobs(narrow, grid).sums - grid_logprobs(wide, grid).sums
    assert difference.abs().max() > 0.1


# --- Batches and padding ---


@pytest.mark.parametrize("family", EXACT_IN_FP64)
def test_neither_padding_nor_the_rest_of_the_batch_changes_a_grid(family, tiny_model, random_grid):
    model = tiny_model(family, torch.float64)
    grids = [
        random_grid(11, 2),
        random_grid(12, 3, 1, one_token_response=False),
        random_grid(13, 1, 4, prompt_lengths=(1, 1)),
    ]
    alone = [grid_logprobs(model, grid) for grid in grids]
    for options in ({}, {"pad_to_multiple": 64}, {"layout": "repeated", "pad_to_multiple": 7}):
        together = batched_grid_logprobs(model, grids, **options)
        assert len(together) == len(grids)
        for one, of_many, grid in zip(alone, together, grids, strict=True):
            assert of_many.sums.shape == grid.shape
            torch.testing.assert_close(of_many.sums, one.sums, rtol=1e-9, atol=1e-9)
            assert of_many.token_counts.tolist() == one.token_counts.tolist()


@pytest.mark.parametrize(
    ("family", "layout"),
    [(family, "shared_prefix") for family in SHARED]
    + [(family, "repeated") for family in SHARED + REPEATED],
)
def test_padding_far_beyond_the_window_gives_no_nan(family, layout, tiny_model, random_grid):
    model = tiny_model(family)
    grids = [Grid([[5]], [[6]]), random_grid(14, 3)]
    results = batched_grid_logprobs(model, grids, layout=layout, pad_to_multiple=64)
    total = sum(uneven(result.sums) for result in results)
    assert torch.isfinite(total)
    for name, gradient in gradients(model, total).items():
        assert torch.isfinite(gradient).all(), name


# --- Which layout ---


def test_eager_attention_repeats_the_prompt_and_is_named_in_the_reason(tiny_model, random_grid):
    model, grid = tiny_model("llama", attention="eager"), random_grid(15, 2)
    layout, reason = choose_layout(model)
    assert layout == "repeated"
    assert "eager" in reason
    expected = one_cell_at_a_time(model, grid)
    torch.testing.assert_close(grid_logprobs(model, grid).sums, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("grids", "options", "message"),
    [
        (
            [[1]],
            {"layout": "shared"},
            "layout: must be one of None, shared_prefix, repeated, got 's",
        ),
        ([[1]], {"head": "chunk"}, "head: must be one of auto, chunked, torch, liger, got 'chunk'"),
        ([], {}, "grids: none are given"),
    ],
)
def test_what_no_model_could_compute_is_refused_by_name(grids, options, message, tiny_model):
    grids = [Grid([ids], [ids]) for ids in grids]
    with pytest.raises(ValueError, match=message):
        batched_grid_logprobs(tiny_model("llama"), grids, **options)


def test_padded_rows_are_computed_without_a_mask_so_that_the_fastest_kernels_serve(random_grid):
    packed = pack([random_grid(0), random_grid(1)], layout="repeated")
    assert packed.padding_mask.min() == 0, "some rows are padded"
    assert _attention_inputs(None, packed, "one") == {}


def banned(logits: Tensor) -> Tensor:
    logits = logits.clone()
    logits[..., [90, 91]] = torch.finfo(logits.dtype).min
    return logits


@pytest.mark.parametrize(
    "changed",
    [banned, lambda logits: logits + torch.linspace(0, 1, logits.shape[-1]).expand(1, 1, 101)],
)
def test_a_model_that_changes_logits_of_single_tokens_is_computed_by_its_own_logits(
    changed, tiny_model, random_grid
):
    model = tiny_model("llama", vocab_size=101).double()

    def change(_, __, output):
        output.logits = changed(output.logits)

    model.register_forward_hook(change)
    grid = random_grid()
    assert traits_of(model).logits is None
    actual, expected = grid_logprobs(model, grid).sums, one_cell_at_a_time(model, grid)
    assert torch.allclose(actual, expected, rtol=1e-9)


def test_the_heads_own_pass_is_spared_and_comes_back_whatever_happens(tiny_model, random_grid):
    model, grid, calls = tiny_model("llama"), random_grid(), []
    head = model.get_output_embeddings()
    expected = grid_logprobs(model, grid).sums
    assert "forward" not in vars(head)
    plain = head.forward

    def counted(states):  # as accelerate puts one there
        calls.append(states.shape)
        return plain(states)

    head.forward = counted
    assert torch.equal(grid_logprobs(model, grid).sums, expected)
    assert not calls
    failing = model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grid_logprobs(model, grid)
    failing.remove()
    assert vars(head)["forward"] is counted
    model(input_ids=torch.tensor([[3, 4]]))
    assert len(calls) == 1


def test_a_head_that_cannot_compute_a_models_logits_is_refused(tiny_model, random_grid):
    with pytest.raises(ValueError, match="head: 'torch' takes no soft cap"):
        grid_logprobs(tiny_model("gemma3_text"), random_grid(16), head="torch")


@pytest.mark.parametrize(
    ("family", "attention", "reason"),
    [("llama", "eager", "eager"), ("recurrent_gemma", "sdpa", "recurrent_gemma has layers")],
)
def test_a_model_that_would_misread_the_mask_is_refused_the_shared_layout(
    family, attention, reason, tiny_model, random_grid
):
    model = tiny_model(family, attention=attention)
    with pytest.raises(ValueError, match=f"layout: .*{reason}"):
        grid_logprobs(model, random_grid(16), layout="shared_prefix")


# --- Precision ---


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_under_autocast_the_sums_stay_fp32_and_close(family, tiny_model, random_grid):
    model, grid = tiny_model(family), random_grid(17, 2)
    exact = grid_logprobs(model, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = grid_logprobs(model, grid)
    assert result.sums.dtype == torch.float32
    assert not torch.equal(result.sums, exact.sums)
    torch.testing.assert_close(result.means, exact.means, rtol=0.05, atol=0.15)
    for name, gradient in gradients(model, uneven(result.sums)).items():
        assert gradient.dtype == torch.float32, name


# --- The real model ---

QUERY = "How do I keep a houseplant alive?"
CONSTITUTIONS = ("Write the answer in Spanish.", "Write the answer in French.")
RESPONSES = (
    "Riega la planta una vez por semana y colócala cerca de una ventana.",
    "Arrosez la plante une fois par semaine et placez-la près d'une fenêtre.",
)


def test_real_model_tells_constitutions_apart_and_equals_one_call_per_cell(real_model_folder):
    tokenizer = AutoTokenizer.from_pretrained(real_model_folder)
    model = AutoModelForCausalLM.from_pretrained(real_model_folder, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": rule}, {"role": "user", "content": QUERY}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for rule in CONSTITUTIONS
    ]
    grid = TextGrid(prompts, RESPONSES, ended=[True, False]).tokenise(tokenizer)
    assert choose_layout(model)[0] == "shared_prefix"
    with torch.no_grad():
        result = grid_logprobs(model, grid, pad_to_multiple=64)
        expected = one_cell_at_a_time(model, grid)
    torch.testing.assert_close(result.sums, expected, rtol=1e-5, atol=1e-3)
    # Nats a token: random text over 49,152 tokens has −10.8, a shifted mask about as much.
    assert (result.means > -6).all()
    assert grid_accuracy(result.means) == (1.0, 1.0)
    assert sami_loss(result.means) < 0.6
    assert mi_lower_bound(result.sums) > 0.6
