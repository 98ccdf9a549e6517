"""Rows that are read and written together say what each would say alone."""

import math

import numpy as np
import pytest
import torch
import transformers
from transformers import LogitsProcessorList, TopPLogitsWarper

from sami_pipeline.engines import (
    GenerationRequest,
    SamplingParameters,
    generate,
    row_cache,
    rows,
)
from sami_pipeline.engines.rows import KeptPrefixes, Row, Rows
from sami_pipeline.engines.sampling import draw_tokens, uniform_numbers
from sami_pipeline.engines.step_graphs import StepGraphs
from sami_pipeline.engines.transformers_engine import TransformersEngine, use_row_attention
from sami_pipeline.models.prompts import Prompt

SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
# Windows are shorter than what the tests read, so that they count.
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma2": {"sliding_window": 6, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"sliding_window": 6},
    "GptOss": {"sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Cohere2": {"sliding_window": 6},
    "Phi3": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "GPTNeoX": {"rotary_pct": 0.5},
    "Llama4Text": {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 48},
}
# No attention that is looked up by name, or states that are no keys and values.
PLAIN = {"Mamba": {"state_size": 8}, "Bloom": {"n_layer": 2, "n_head": 4}}


def small_model(family: str) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{family}Config")
    extra = FAMILIES.get(family) or PLAIN.get(family) or {}
    known = {
        name: value
        for name, value in SMALL.items()
        if family not in ("GPT2", "Bloom") or name not in ("num_hidden_layers", "head_dim")
    }
    model_class = getattr(
        transformers, f"{family.removesuffix('Text')}ForCausalLM", None
    ) or getattr(transformers, f"{family}LMHeadModel")
    torch.manual_seed(0)
    model = model_class(config(**known | extra)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_()
    return model


def prompts(lengths=(3, 14, 1, 9, 14, 22)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    found = [
        torch.randint(3, SMALL["vocab_size"], (length,), generator=generator).tolist()
        for length in lengths
    ]
    found[4][:12] = found[1][:12]  # a shared beginning
    return found


def row(index: int, prompt: list[int], tokens: int = 20, *, goes_on: bool = False) -> Row:
    return Row(index, prompt, SamplingParameters(tokens), np.empty(0), goes_on)


@torch.inference_mode()
def greedy(batch: Rows, waiting: list[Row]) -> list[list[int]]:
    """Return what each row says greedily; those that wait take the places of those that end."""
    waiting, everything = list(waiting), list(waiting)
    while waiting or batch.active:
        if waiting and len(batch.active) < batch.slots:
            count = batch.slots - len(batch.active)
            arriving, waiting = waiting[:count], waiting[count:]
            changed, logits = arriving, batch.read(arriving)
        else:
            changed, logits = list(batch.active), batch.step()
        for each, token in zip(changed, logits.argmax(-1).tolist(), strict=True):
            each.written.append(token)
        batch.leave(
            [
                place
                for place, each in enumerate(batch.active)
                if len(each.written) == each.sampling.max_new_tokens
            ],
            others_wait=bool(waiting),
        )
    return [each.written for each in everything]


def by_generate(model, prompt: list[int], tokens: int) -> list[int]:
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rows_equal_plain_generate(family):
    model = small_model(family)
    lengths = [20, 5, 11, 20, 17, 2]
    expected = [
        by_generate(model, prompt, tokens)
        for prompt, tokens in zip(prompts(), lengths, strict=True)
    ]
    assert len({tuple(each[:5]) for each in expected}) > 2
    assert use_row_attention(model) == ""
    batch = Rows(model, 3, kept_bytes=2**20)
    waiting = [row(i, p, n) for i, (p, n) in enumerate(zip(prompts(), lengths, strict=True))]
    assert greedy(batch, waiting) == expected
    # As on a GPU: steps are filled up to the sizes that they are recorded in.
    filled = Rows(model, 5, kept_bytes=2**20)
    filled._graphs = StepGraphs(filled._run, filled._cache)
    waiting = [row(i, p, n) for i, (p, n) in enumerate(zip(prompts(), lengths, strict=True))]
    assert greedy(filled, waiting) == expected


@pytest.mark.parametrize("family", PLAIN)
def test_model_that_rows_do_not_fit_is_left_as_it_was_with_a_reason(family):
    model = small_model(family)
    before = model.config._attn_implementation
    expected = by_generate(model, prompts()[1], 8)
    assert use_row_attention(model)
    assert model.config._attn_implementation == before
    assert by_generate(model, prompts()[1], 8) == expected


def test_model_whose_mask_is_its_own_is_found_out_by_its_logits(monkeypatch):
    model = small_model("Llama")
    monkeypatch.setattr(
        row_cache.RowCache, "get_query_offset", lambda self, layer_idx=0: self.width - 1
    )
    assert "logits differ" in use_row_attention(model)


class TestPrefixes:
    @pytest.fixture
    def model(self):
        model = small_model("Llama")
        assert use_row_attention(model) == ""
        return model

    @pytest.fixture
    def read(self, model, monkeypatch):
        """Count the tokens that the model reads, padding left out."""
        counted = []
        prepare = row_cache.RowCache.prepare

        def counting(self, slots, starts, counts):
            counted.extend(counts)
            prepare(self, slots, starts, counts)

        monkeypatch.setattr(row_cache.RowCache, "prepare", counting)
        return counted

    def test_samples_of_a_prompt_read_it_once(self, model, read):
        prompt = prompts((60,) * 6)[0]
        expected = greedy(Rows(model, 1, kept_bytes=0), [row(0, prompt, 1)])
        read.clear()
        batch = Rows(model, 10, kept_bytes=0)
        assert greedy(batch, [row(i, prompt, 1) for i in range(10)]) == expected * 10
        assert sum(read) == 59 + 10  # the last token once for each row: its logits are wanted

    def test_beginnings_are_read_once_at_every_branch(self, model, read):
        start, other, third = prompts((40, 30, 30, 20, 30, 30))[:3]
        tails = prompts((5, 6, 7, 8, 12, 9))
        trunk = [start + other + tail for tail in tails[:3]]
        branch = [start + third + tail for tail in tails[3:]]
        together = [*trunk, *branch, other]
        expected = [by_generate(model, each, 3) for each in together]
        read.clear()
        batch = Rows(model, 7, kept_bytes=0)
        assert greedy(batch, [row(i, each, 3) for i, each in enumerate(together)]) == expected
        once = 40 + 30 + 30 + sum(map(len, tails)) + 30
        assert sum(read) == once + 2 * 7

    def test_next_turn_goes_on_where_the_last_one_ended(self, model, read):
        first = prompts((50,) * 6)[0]
        batch = Rows(model, 2, kept_bytes=2**20)
        written = greedy(batch, [row(0, first, 12, goes_on=True)])[0]
        second = first + written + prompts((9,) * 6)[2]
        expected = by_generate(model, second, 12)
        read.clear()
        assert greedy(batch, [row(0, second, 12)]) == [expected]
        # The last token of the first turn was written and never read.
        assert sum(read) == 1 + 9 + 11

    def test_what_was_read_is_kept_only_for_rows_that_wait_or_go_on(self, model, read):
        first, other = prompts((50,) * 6)[:2]
        alike = first[:40] + other[:3]
        expected = [by_generate(model, each, 4) for each in (first, alike)]
        batch = Rows(model, 1, kept_bytes=2**20)
        read.clear()
        assert greedy(batch, [row(0, first, 4), row(1, alike, 4)]) == expected
        assert sum(read) == 50 + 3 + 3 + 3
        assert batch.kept.find(first)[0] == 50
        assert batch.kept.find(alike)[0] == 40, "nothing waited for it any more"
        ended = Rows(model, 2, kept_bytes=2**20)
        assert greedy(ended, [row(0, first, 4), row(1, alike, 4)]) == expected
        assert ended.kept.size == 0

    def test_rows_that_are_being_written_lend_what_they_have_read(self, model, read):
        prompt = prompts((60,) * 6)[0]
        batch = Rows(model, 2, kept_bytes=0)
        waiting = [row(0, prompt, 9), row(1, prompt[:30], 2), row(2, [*prompt[:50], 5], 9)]
        expected = [
            by_generate(model, each.prompt, each.sampling.max_new_tokens) for each in waiting
        ]
        read.clear()
        assert greedy(batch, waiting) == expected
        assert sum(read) == 60 + 1 + 1 + 8 + 1 + 8

    def test_prompts_read_together_are_padded_to_little_more_than_their_length(
        self, model, monkeypatch
    ):
        passes = []
        prepare = row_cache.RowCache.prepare

        def watched(self, slots, starts, counts):
            passes.append(list(counts))
            prepare(self, slots, starts, counts)

        monkeypatch.setattr(row_cache.RowCache, "prepare", watched)
        monkeypatch.setattr(rows, "_TOKENS_AT_ONCE", 90)
        lengths = (90, 80, 46, 44, 20, 11, 10, 9, 9, 2, 1)
        several = [row(i, [i + 3] * length) for i, length in enumerate(lengths)]
        with torch.inference_mode():
            Rows(model, len(lengths), kept_bytes=0).read(several)
        assert sum(map(sum, passes)) == sum(lengths)
        for counts in passes:
            assert 3 * max(counts) <= 4 * min(counts)
            assert len(counts) * max(counts) <= 90

    def test_memory_for_ended_rows_is_bounded(self):
        kept = KeptPrefixes(100)
        piece = [torch.zeros(10)]  # 40 bytes
        for number in range(3):
            kept.add([number, 7], piece)
        assert kept.size == 80
        assert kept.find([0, 7, 8])[0] == 0
        assert kept.find([1, 7, 8])[0] == 2
        kept.add([3, 7], piece)  # 2 was used longer ago than 1
        assert kept.find([2, 7])[0] == 0
        assert kept.find([1, 9])[0] == 1


class TestDrawing:
    def test_samples_follow_the_distribution(self):
        """Chi-square over 30,000 draws from 300 tokens; fails once in 10,000 by chance."""
        vocabulary, draws, temperature = 300, 30_000, 0.7
        generator = torch.Generator().manual_seed(3)
        logits = torch.randn(1, vocabulary, generator=generator)
        expected = (logits[0] / temperature).double().softmax(-1).numpy() * draws
        numbers = np.concatenate([uniform_numbers(0, [5, 6], i, 1) for i in range(draws)])
        tokens = draw_tokens(
            logits.expand(draws, -1), [SamplingParameters(1, temperature)] * draws, numbers
        )
        observed = np.bincount(tokens, minlength=vocabulary)
        frequent = expected >= 5
        pairs = [
            *zip(observed[frequent], expected[frequent], strict=True),
            (observed[~frequent].sum(), expected[~frequent].sum()),
        ]
        statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs)
        degrees = len(pairs) - 1
        # Wilson and Hilferty's approximation of the quantile
        limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3
        assert degrees > 100
        assert statistic < limit

    def test_every_number_falls_into_the_interval_of_its_token(self):
        logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)) * 4
        logits[0, ::3] = -torch.inf
        probabilities = logits[0].double().softmax(-1)
        cumulated = probabilities.cumsum(-1)
        numbers = np.linspace(0, 1, 2001)[:-1]
        tokens = draw_tokens(logits.expand(2000, -1), [SamplingParameters(1, 1.0)] * 2000, numbers)
        for token, number in zip(tokens, numbers, strict=True):
            assert probabilities[token] > 0
            assert cumulated[token] - probabilities[token] <= number + 1e-6
            assert number <= cumulated[token] + 1e-6

    @pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
    @pytest.mark.parametrize("spread", [0.1, 3.0])
    def test_nucleus_is_that_of_transformers(self, top_p, spread):
        logits = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0)) * spread
        warped = LogitsProcessorList([TopPLogitsWarper(top_p)])(None, logits)
        allowed = set(warped[0].isfinite().nonzero()[:, 0].tolist())
        numbers = np.linspace(0, 1, 20_001)[:-1]
        drawn = set(
            draw_tokens(
                logits.expand(len(numbers), -1)[:4000],
                [SamplingParameters(1, 1.0, top_p)] * 4000,
                numbers[::5],
            )
        )
        assert drawn <= allowed
        likely = warped.softmax(-1)[0] > 1e-3
        assert set(likely.nonzero()[:, 0].tolist()) <= drawn

    def test_rows_of_one_batch_are_each_drawn_by_their_own_parameters(self):
        logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
        samplings = [
            SamplingParameters(1), SamplingParameters(1, 1.0), SamplingParameters(1, 0.3, 0.5),
            SamplingParameters(1),
        ]  # fmt: skip
        numbers = [0.0, 0.9, 0.4, 0.0]
        together = draw_tokens(logits, samplings, numbers)
        alone = [
            draw_tokens(logits[i : i + 1], samplings[i : i + 1], numbers[i : i + 1])[0]
            for i in range(4)
        ]
        assert together == alone
        assert together[0] == logits[0].argmax()

    def test_numbers_depend_on_seed_prompt_and_sample_alone(self):
        numbers = uniform_numbers(1, [4, 5], 2, 6)
        assert (uniform_numbers(1, [4, 5], 2, 9)[:6] == numbers).all()
        others = [(2, [4, 5], 2), (1, [4, 6], 2), (1, [4, 5], 3)]
        assert all((uniform_numbers(*each, 6) != numbers).all() for each in others)
        assert ((numbers >= 0) & (numbers < 1)).all()


class TestEngine:
    PROMPTS = tuple(
        Prompt(messages=(("user", text),))
        for text in ("Hello", "Tell me a long story about a cat.", "z", "1 + 1 =", "Hello there")
    )

    def ask(self, engine, requests, seed=0):
        return generate(engine, requests, seed=seed, description="Tests")

    def requests(self) -> list[GenerationRequest]:
        drawn = ((30, 1.0, 1.0), (9, 0.0, 1.0), (21, 0.7, 0.9))
        return [
            GenerationRequest(prompt, SamplingParameters(*each), sample)
            for each in drawn
            for prompt in self.PROMPTS
            for sample in range(2 if each[1] else 1)
        ]

    def test_what_a_row_says_does_not_depend_on_its_neighbours(self, random_checkpoint):
        requests = self.requests()
        engine = TransformersEngine(random_checkpoint.folder, dtype="float32", batch_size=4)
        together = self.ask(engine, requests)
        alone = TransformersEngine(
            random_checkpoint.folder, dtype="float32", batch_size=1, kept_gib=0
        )
        assert [self.ask(alone, [request])[0] for request in requests] == together
        # As after a kill: some are stored already.
        assert self.ask(engine, requests[1::3]) == together[1::3]
        assert self.ask(engine, requests, seed=1) != together

    def test_plain_generate_says_the_same(self, random_checkpoint, monkeypatch, caplog):
        requests = [
            *self.requests(),
            *(
                GenerationRequest(prompt, SamplingParameters(30, 1.0, stop=("e", "a")))
                for prompt in self.PROMPTS
            ),
        ]
        folder = random_checkpoint.folder
        expected = self.ask(TransformersEngine(folder, dtype="float32", batch_size=4), requests)
        name = "sami_pipeline.engines.transformers_engine.use_row_attention"
        monkeypatch.setattr(name, lambda model: "for the test")
        engine = TransformersEngine(folder, dtype="float32", batch_size=4)
        assert engine.lanes == []
        assert "plain generate is used" in caplog.text
        assert self.ask(engine, requests) == expected

    def test_generation_that_was_left_in_the_middle_disturbs_no_other(self, random_checkpoint):
        engine = TransformersEngine(random_checkpoint.folder, dtype="float32", batch_size=3)
        expected = self.ask(engine, self.requests())
        stream = engine.stream(self.requests(), seed=0)
        engine_module = "sami_pipeline.engines.transformers_engine"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{engine_module}.SECONDS_BETWEEN_PIECES", 0.0)
            next(stream)
        assert self.ask(engine, self.requests()) == expected
        assert list(stream) == []  # it was ended, so that it writes into no rows of another call
