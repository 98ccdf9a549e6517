"""Progress that survives: what is stored is not asked again, and the rest comes out the same."""

import json
import multiprocessing
import shutil
from dataclasses import replace

import pytest

from sami_pipeline.engines import (
    Completion,
    CompletionStore,
    GenerationRequest,
    SamplingParameters,
    completion_key,
    generate,
    model_fingerprint,
    transformers_engine,
)
from sami_pipeline.engines import store as stores
from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import Prompt

GREEDY = SamplingParameters(8)
SAMPLED = SamplingParameters(8, temperature=1.0)
REQUESTS = [
    GenerationRequest(Prompt(messages=(("user", "word " * length),)), sampling, sample)
    for length in (1, 2, 3, 9)
    for sampling, sample in ((GREEDY, 0), (SAMPLED, 1), (SAMPLED, 2))
]


class Watched:
    """A real engine that counts what it is asked and can be stopped after some pieces."""

    def __init__(self, engine, pieces=None) -> None:
        self.engine, self.pieces, self.asked = engine, pieces, []
        self.identity = engine.identity

    def stream(self, requests, *, seed):
        self.asked += requests
        for number, piece in enumerate(self.engine.stream(requests, seed=seed)):
            if number == self.pieces:
                raise KeyboardInterrupt
            yield piece


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Hand over every completion as soon as it is there."""
    monkeypatch.setattr(transformers_engine, "SECONDS_BETWEEN_PIECES", 0.0)


@pytest.fixture(scope="module")
def engine(random_checkpoint) -> TransformersEngine:
    return TransformersEngine(random_checkpoint.folder, dtype="float32", batch_size=2)


@pytest.fixture
def store(tmp_path) -> CompletionStore:
    return CompletionStore(tmp_path / "completions")


def run(engine, requests=REQUESTS, store=None, seed=0) -> list[Completion]:
    return generate(engine, requests, seed=seed, description="Tests", store=store)


def test_completions_come_back_from_the_store_as_they_were(engine, store):
    written = run(engine, store=store)
    watched = Watched(engine)
    assert run(watched, store=CompletionStore(store.folder)) == written
    assert watched.asked == []


@pytest.mark.parametrize("pieces", [0, 1, 3, 5])
def test_run_that_was_killed_goes_on_and_ends_in_the_same_texts(engine, store, pieces):
    uninterrupted = run(engine)
    with pytest.raises(KeyboardInterrupt):
        run(Watched(engine, pieces), store=store)
    keys = [completion_key(engine.identity, request, 0) for request in REQUESTS]
    stored = len(store.find(keys))
    assert pieces <= stored < len(REQUESTS)
    watched = Watched(engine)
    assert run(watched, store=CompletionStore(store.folder)) == uninterrupted
    assert len(watched.asked) == len(REQUESTS) - stored


def test_line_that_a_kill_cut_short_is_asked_again(engine, store):
    written = run(engine, store=store)
    (path,) = store.folder.glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:-9])
    watched = Watched(engine)
    assert run(watched, store=CompletionStore(store.folder)) == written
    assert len(watched.asked) == len(json.loads(lines[-1]))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": Prompt(messages=(("user", "other"),))},
        {"prompt": Prompt(text="word ")},
        {"sampling": replace(SAMPLED, max_new_tokens=9)},
        {"sampling": replace(SAMPLED, temperature=0.9)},
        {"sampling": replace(SAMPLED, top_p=0.9)},
        {"sampling": replace(SAMPLED, stop=("x",))},
        {"sampling": replace(SAMPLED, choices=("x",))},
        {"sample": 2},
    ],
)
def test_changed_request_is_another_completion(change):
    request = GenerationRequest(Prompt(messages=(("user", "word "),)), SAMPLED, 1)
    changed = replace(request, **change)
    assert completion_key("engine", changed, 0) != completion_key("engine", request, 0)
    assert completion_key("engine", request, 1) != completion_key("engine", request, 0)
    assert completion_key("other", request, 0) != completion_key("engine", request, 0)


def test_greedy_response_is_the_same_whatever_the_seed_and_sample(engine):
    request = GenerationRequest(Prompt(text="word"), GREEDY)
    again = replace(request, sample=3)
    assert completion_key("engine", again, 7) == completion_key("engine", request, 0)
    watched = Watched(engine)
    one, other = run(watched, [request, again])
    assert one == other
    assert len(watched.asked) == 1, "alike requests are asked once"


def test_model_with_other_weights_is_asked_again(random_checkpoint, tmp_path):
    folder = shutil.copytree(random_checkpoint.folder, tmp_path / "model")
    before = model_fingerprint(folder)
    (folder / "provenance.json").write_text("{}")
    (folder / "README.md").write_text("a note")
    assert model_fingerprint(folder) == before
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    changed = model_fingerprint(folder)
    assert changed != before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert model_fingerprint(folder) != changed


def test_failed_completions_are_not_kept(store):
    failed = Completion("", "failed", 0, 0)
    good = Completion("x", "stop", 1, 1, choice_logprobs=(-0.5, -1.0))
    store.add({"a": failed, "b": good})
    store.add({"c": failed})
    assert store.find(["a", "b", "c"]) == {"b": good}


def test_damaged_line_is_one_clear_error(engine, store):
    run(engine, store=store)
    (path,) = store.folder.glob("*.jsonl")
    path.write_text(json.dumps({"key": {"text": "x"}}) + "\n" + path.read_text())
    assert len(store.find(["other"])) == 0
    with pytest.raises(InputError, match=r"line 1: is no stored completion .* delete the line"):
        store.find(["key"])
    path.write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1: is no stored completion"):
        store.find(["other"])


def _write_many(folder, worker) -> None:
    store = CompletionStore(folder)
    for number in range(50):
        store.add({f"{worker}/{number}": Completion("x" * 5000, "stop", 1, 1)})


def test_processes_that_write_at_once_lose_nothing(store):
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_write_many, args=(store.folder, worker)) for worker in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    keys = [f"{worker}/{number}" for worker in range(3) for number in range(50)]
    assert len(store.find(keys)) == 150


ENGINE = "engines/transformers_engine.py", "class TransformersEngine:"
OTHER_CODE = "@(lambda kind: kind)\nclass TransformersEngine:"


@pytest.fixture
def policy():
    """A function that hands a policy over, until the test ends."""
    yield lambda **options: stores.hand_over(stores.StorePolicy(**options))
    stores.hand_over(stores.StorePolicy())


def asked(store) -> int:
    return sum(len(json.loads(line)) for path in store.folder.glob("*.jsonl")
               for line in path.read_text().splitlines())  # fmt: skip


def test_texts_of_earlier_code_are_taken_up_and_counted_in_one_line(
    engine, store, sources, policy, caplog
):
    caplog.set_level("INFO")
    written = run(engine, store=store)
    assert "earlier code" not in caplog.text
    sources(*ENGINE, f"# a comment\n{ENGINE[1]}")
    run(engine, store=CompletionStore(store.folder))
    assert "earlier code" not in caplog.text
    sources(*ENGINE, OTHER_CODE)
    assert run(engine, store=CompletionStore(store.folder)) == written
    assert caplog.text.count("earlier code") == 1
    assert "12 stored texts come from earlier code" in caplog.text
    assert asked(store) == 12


def test_texts_of_earlier_code_are_asked_again_once_where_that_is_wanted(
    engine, store, sources, policy, caplog
):
    run(engine, store=store)
    sources(*ENGINE, OTHER_CODE)
    policy(ask_again=True)
    written = run(engine, store=CompletionStore(store.folder))
    assert asked(store) == 24
    assert run(engine, store=CompletionStore(store.folder)) == written
    policy(ask_again=False)
    caplog.set_level("INFO")
    assert run(engine, store=CompletionStore(store.folder)) == written
    assert asked(store) == 24
    assert "earlier code" not in caplog.text, "this code's own texts go before earlier ones"


def test_texts_of_the_same_requests_are_taken_from_other_runs_and_kept(
    engine, tmp_path, policy, caplog
):
    caplog.set_level("INFO")
    first, second = (CompletionStore(tmp_path / name / "completions") for name in "ab")
    written = run(engine, REQUESTS[:6], store=first)
    first.add({"not a request": Completion("x", "stop", 1, 1)})
    policy(others={second.folder: [first.folder]})
    assert run(engine, REQUESTS[:9], store=second)[:6] == written
    assert "6 are taken from other runs" in caplog.text
    assert asked(second) == 9
    shutil.rmtree(first.folder)
    assert run(engine, REQUESTS[:6], store=CompletionStore(second.folder)) == written


def test_texts_that_were_stored_before_code_was_recorded_count_as_earlier(engine, store, caplog):
    caplog.set_level("INFO")
    written = run(engine, store=store)
    for path in store.folder.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for fields in line.values():
                del fields["code"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(engine, store=CompletionStore(store.folder)) == written
    assert "12 stored texts come from earlier code" in caplog.text
