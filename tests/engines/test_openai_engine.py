"""The openai engine against real servers on loopback: good ones, bad ones and dying clients."""

import asyncio
import json
import logging
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from openai_server import (
    FAULTS,
    KNOWN,
    MODEL,
    OpenAIServer,
    Reply,
    Sent,
    answers_of,
    body,
    digest,
    error,
    usual,
)
from pydantic import ValidationError

from sami_pipeline.engines import (
    Completion,
    CompletionStore,
    EngineParameters,
    GenerationRequest,
    OpenAIParameters,
    SamplingParameters,
    credentials,
    generate,
    open_engine,
)
from sami_pipeline.engines.openai_engine import OpenAIEngine
from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import Prompt

KEY = "sk-test-4f1d0c9a7be2"
GREEDY = SamplingParameters(12)
SAMPLED = SamplingParameters(12, temperature=1.0)
CHOICES = SamplingParameters(4, choices=("A", "B", "tie"))


def ask(text: str, sampling: SamplingParameters = GREEDY, sample: int = 0) -> GenerationRequest:
    return GenerationRequest(Prompt(messages=(("user", text),)), sampling, sample)


QUESTIONS = [ask(f"question {i}") for i in range(20)]


@pytest.fixture(autouse=True)
def no_key_is_lying_about(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    credentials.hand_over({})


@pytest.fixture
def store(tmp_path) -> CompletionStore:
    return CompletionStore(tmp_path / "completions")


@pytest.fixture
def secret(capfd, tmp_path):
    """Hand the key over; at the end it must be in no log, even the most talkative, and no file."""
    records: list[logging.LogRecord] = []
    handler, root = logging.Handler(), logging.getLogger()
    handler.emit = records.append
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    credentials.hand_over({"openai": {"api_key": KEY}})
    yield KEY
    root.removeHandler(handler)
    root.setLevel(level)
    assert {each.name.split(".")[0] for each in records} >= {"openai", "httpx2", "sami_pipeline"}
    for record in records:
        assert KEY not in record.getMessage() + str(vars(record))
    assert KEY not in "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY not in path.read_text("utf-8")


def opened(server: OpenAIServer | str, **fields) -> OpenAIEngine:
    url = server if isinstance(server, str) else server.url
    fields = {"base_url": url, "model": MODEL, "timeout": 30.0} | fields
    engine = open_engine(EngineParameters(kind="openai", openai=fields))
    assert isinstance(engine, OpenAIEngine)
    return engine


def run(
    server: OpenAIServer | str, requests=QUESTIONS, store=None, seed=0, **fields
) -> tuple[list[Completion], OpenAIEngine]:
    with closing(opened(server, **fields)) as engine:
        return generate(engine, requests, seed=seed, description="Tests", store=store), engine


def expected(requests) -> list[Completion]:
    bodies = [{"messages": [{"content": each.prompt.messages[-1][1]}]} for each in requests]
    return [digest(Sent(0, "/chat/completions", body, None, 0)) for body in bodies]


@pytest.fixture(scope="module")
def model(random_checkpoint) -> TransformersEngine:
    return TransformersEngine(random_checkpoint.folder, dtype="float32", batch_size=1)


def test_served_model_writes_what_it_writes_without_a_server(model):
    plain = Prompt(text="Once upon a time")
    requests = [ask("Hello"), ask("1 + 1 ="), GenerationRequest(plain, GREEDY)]
    requests.append(replace(requests[0], prompt=Prompt((("system", "Be brief."), ("user", "Hi")))))
    local = generate(model, requests, seed=0, description="Tests")
    stop = local[0].text[2:4]
    requests.append(ask("Hello", replace(GREEDY, stop=(stop,))))
    local = generate(model, requests, seed=0, description="Tests")
    assert local[-1].finish_reason == "stop" and len({each.text for each in local}) == 5
    with OpenAIServer(answers_of(model)) as server:
        served, _ = run(server, requests)
        cut_here, _ = run(server, requests, leave_out=("stop",))
    assert served == local
    assert [each.text for each in cut_here] == [each.text for each in local]
    assert [each.finish_reason for each in cut_here] == [each.finish_reason for each in local]
    paths = Counter(each.path for each in server.sent)
    assert paths == {"/v1/chat/completions": 8, "/v1/completions": 2}


def test_samples_are_drawn_apart_and_the_same_again(model):
    requests = [ask(text, SAMPLED, sample) for text in ("Hello", "z") for sample in range(4)]
    with OpenAIServer(answers_of(model)) as server:
        first, _ = run(server, requests)
        second, _ = run(server, requests)
        other, _ = run(server, requests, seed=1)
        run(server, requests, leave_out=("seed",))
    assert first == second
    assert len({each.text for each in first + other}) == 16
    seeds = [each.body.get("seed") for each in server.sent]
    assert len(set(seeds[:24])) == 16 and set(seeds[24:]) == {None}
    assert all(0 <= seed < 2**31 for seed in seeds[:24])


def test_every_sampling_parameter_is_sent_even_where_it_is_the_default():
    with OpenAIServer() as server:
        run(server, [ask("x")])
        run(server, [ask("x", SamplingParameters(5, 0.5, 0.9, ("END",)))], leave_out=("seed",))
    plain, all_of_them = (each.body for each in server.sent)
    message = [{"role": "user", "content": "x"}]
    assert plain == {
        "model": MODEL, "messages": message, "max_tokens": 12, "temperature": 0.0, "top_p": 1.0,
    }  # fmt: skip
    assert all_of_them == {
        "model": MODEL, "messages": message, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9,
        "stop": ["END"],
    }  # fmt: skip


def test_misbehaving_server_loses_and_doubles_nothing(secret, store):
    requests = [ask(f"question {i}", SAMPLED, i % 3) for i in range(150)]
    with OpenAIServer(key=secret) as good:
        wanted, _ = run(good, requests)
    draw = random.Random(0)
    met = Counter()

    def fault(sent: Sent) -> str | None:
        if draw.random() > 0.3:
            return None
        met[name := draw.choice(list(FAULTS))] += 1
        return name

    with OpenAIServer(key=secret, fault=fault) as server:
        completions, engine = run(server, requests, store, concurrency=32, timeout=1.0)
        assert completions == wanted
        assert set(met) == set(FAULTS)
        assert engine.usage.failed == 0
        assert engine.usage.sent == len(server.sent) == 150 + engine.usage.retries
        assert engine.usage.retries == sum(each.retry > 0 for each in server.sent) >= met.total()
        (file,) = store.folder.glob("*.jsonl")
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert all(len(line) == 1 for line in lines), "an answer is stored as soon as it comes"
        assert len({key for line in lines for key in line}) == len(lines) == 150
        again, engine = run(server, requests, store)
    assert again == wanted
    assert engine.usage.sent == 0, "a second run asks nothing"


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_one_prompt_fails_that_one_alone_after_all_retries(store, fault):
    spoilt = ask("spoilt")
    requests = [spoilt, *QUESTIONS]

    def fault_of(sent: Sent) -> str | None:
        return fault if sent.text == "spoilt" else None

    with OpenAIServer(fault=fault_of) as server:
        completions, engine = run(
            server, requests, store, max_retries=1, timeout=1.0, max_missing=0.05
        )
        assert completions == [Completion("", "failed", 0, 0), *expected(QUESTIONS)]
        assert engine.usage.failed == 1 and engine.usage.answered == 20
        assert engine.usage.retries == 1 and engine.usage.sent == len(server.sent) == 22
        server.fault = lambda sent: None
        completions, engine = run(server, requests, store)
    assert completions == expected(requests)
    assert engine.usage.sent == 1, "only what has failed is asked again"


def test_retry_after_is_waited_for():
    def fault(sent: Sent):
        return None if sent.retry else error(429, "slow down", **{"Retry-After": "1.5"})

    with OpenAIServer(fault=fault) as server:
        completions, engine = run(server, QUESTIONS[:1])
    assert completions == expected(QUESTIONS[:1])
    first, second = server.sent
    assert second.at - first.at >= 1.5, "the package's own first wait is half a second at most"
    assert engine.usage.retries == 1


def test_concurrency_is_used_and_kept():
    with OpenAIServer(delay=0.1) as server:
        most = 0

        def watched(sent: Sent) -> Completion:
            nonlocal most
            most = max(most, len(server.sent) - server.answered)
            return digest(sent)

        server.answer = watched
        run(server, concurrency=5)
    assert most == 5


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (
            error(401, f"Bad key {KEY}"),
            ["refuses the key (HTTP 401: Bad key ***)", "conf/local/credentials.yml"],
        ),
        (
            error(403, f"Suspended: abuse by {KEY[:8]}***{KEY[-4:]}"),
            ["forbids every request (HTTP 403: Suspended: abuse by ***)", "OPENAI_API_KEY"],
        ),
        (error(402, f"{KEY} owes"), ["has no credit left", "***"]),
        (error(429, "quota", "insufficient_quota"), ["has no credit left"]),
        (error(404, f"No model, {KEY}"), ["openai.model", "'small'", "***", "base_url"]),
        (error(400, f"what is top_p?\nfrom {KEY}"), ["what is top_p? from ***", "leave_out"]),
        (
            error(400, "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'"),
            ["openai.token_limit_field", "set token_limit_field: max_completion_tokens"],
        ),
        (error(429, "100 a day", **{"Retry-After": "0.1"}), ["100 a day", "wait until its limit"]),
        (body({"error": {"message": "owes", "code": 402}}), ["has no credit left", "owes"]),
        (body({"error": "overloaded"}), ["base_url", "HTTP 200 with an error", "overloaded"]),
        (error(500, "oops"), ["openai.base_url", "HTTP 500: oops", "start the server"]),
        (
            Reply(404, f"<html><head><title>404\n {KEY} &amp; no</title></head>x</html>".encode()),
            ["openai.model", "(HTTP 404: a web page: 404 *** & no)", "base_url"],
        ),
        (
            Reply(403, b"<!DOCTYPE html><style>p {}</style><p>Sign\nin</p>"),
            ["(HTTP 403: a web page: Sign in)"],
        ),
        (
            Reply(200, b"<!doctype html><html><title>Sign in</title></html>"),
            ["openai.base_url", "unusable body, a web page: Sign in"],
        ),
        (
            Reply(400, b'{"detail": [{"loc": ["body", "top_p"], "msg": "not here"}]}'),
            ["top_p", "not here", "leave_out"],
        ),
        (Reply(400, b"Model is loading"), ["(HTTP 400: Model is loading)"]),
        (Reply(302), ["openai.base_url", "(HTTP 302", "correct the address"]),
    ],
)
def test_what_no_request_survives_ends_the_run_with_one_line(secret, store, reply, named):
    with OpenAIServer(key=KEY) as server:
        run(server, QUESTIONS[:5], store)
        server.fault = lambda sent: reply
        before = len(server.sent)
        with pytest.raises(InputError) as caught:
            run(server, QUESTIONS, store, concurrency=4, max_retries=1)
        assert len(server.sent) - before <= 4 * 2 + 2, "no more is sent once this is known"
        for part in ("engine.openai", server.url, *named):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value) and KEY not in str(caught.value)
        link = caught.value
        while link is not None:  # nothing that a traceback would print along
            assert KEY not in repr(link)
            link = link.__cause__ or link.__context__
        server.fault = lambda sent: None
        completions, engine = run(server, QUESTIONS, store)
    assert completions == expected(QUESTIONS)
    assert engine.usage.sent == 15, "what was stored before is kept"


def test_absent_server_ends_the_run_with_one_line():
    with OpenAIServer() as server:
        url = server.url
    with pytest.raises(InputError, match=r"engine\.openai\.base_url: .* \(no connection\); start"):
        run(url, max_retries=1)


@pytest.mark.parametrize("form", ['{"error": {"message": "%s"}}', '{"detail": "%s"}', "%s"])
def test_refusal_of_one_prompt_is_its_own_even_in_a_run_that_asks_nothing_else(form):
    too_long = form % "This model's maximum context length is 9 tokens."

    def fault(sent: Sent):
        if sent.text == "bad":
            return error(400, "not this one")
        if sent.text == "long":
            return Reply(400, too_long.encode())
        return None

    with OpenAIServer(fault=fault) as server:
        (bad, long), engine = run(server, [ask("bad"), ask("long")], max_missing=0.5)
        assert [each.text for each in server.sent].count("Hello") == 1
        assert engine.usage.failures == {"HTTP 400": 1}
    assert (bad.finish_reason, long.finish_reason) == ("failed", "prompt_too_long")


def test_key_that_is_revoked_meanwhile_loses_no_answer(secret, store):
    def fault(sent: Sent):
        return error(401, "revoked") if len(server.sent) > 10 else None

    with OpenAIServer(key=KEY, fault=fault, delay=0.05) as server:
        with pytest.raises(InputError, match="refuses the key"):
            run(server, QUESTIONS, store, concurrency=4)
        server.fault = lambda sent: None
        _, engine = run(server, QUESTIONS, store)
    assert engine.usage.sent == 10


@pytest.mark.parametrize(
    ("choices", "answer", "field"),
    [
        ("json_schema", lambda choice: json.dumps({"choice": choice}), "response_format"),
        ("structured_outputs", str, "structured_outputs"),
        ("guided_choice", str, "guided_choice"),
        ("text", lambda choice: f" {choice}\n", None),
    ],
)
def test_response_is_one_of_the_choices_or_has_failed(monkeypatch, choices, answer, field):
    monkeypatch.setattr("openai_server.KNOWN", {"structured_outputs", "guided_choice"} | KNOWN)

    def reply(sent: Sent) -> Completion:
        text = sent.text if sent.text == "neither" else answer(sent.text)
        return Completion(text, "stop", 3, 2)

    with OpenAIServer(reply) as server:
        said = ("tie", "A", "neither", "C")
        requests = [ask(text, CHOICES) for text in said]
        completions, engine = run(server, requests, choices=choices, max_missing=0.5)
    assert [each.text for each in completions] == ["tie", "A", "", ""]
    assert [each.finish_reason for each in completions] == ["stop", "stop", "failed", "failed"]
    assert engine.usage.failures == {"none of the choices": 2}
    assert engine.usage.completion_tokens == 8, "what has failed is paid for too"
    body = server.sent[0].body
    own = set(body) - {"model", "messages", "max_tokens", "temperature", "top_p"}
    assert own == ({field} if field else set())
    assert field is None or '["A", "B", "tie"]' in json.dumps(body[field])
    assert body["max_tokens"] >= (len('{"choice": "tie"}') if field == "response_format" else 4)


def test_tokens_and_cost_are_summed_up_and_logged(caplog, store):
    caplog.set_level(logging.INFO)
    prices = {"prompt_price": 2.0, "completion_price": 10.0}
    with OpenAIServer() as server:
        _, engine = run(server, store=store, **prices)
        assert (engine.usage.prompt_tokens, engine.usage.completion_tokens) == (140, 220)
        assert engine.usage.cost == pytest.approx((140 * 2 + 220 * 10) / 1e6)
        assert "small: 20 answered, 0 failed, 0 retries, 140 prompt and 220 completion" in (
            caplog.text
        )
        _, engine = run(server, store=store, **prices)
        assert engine.usage.cost == 0
        assert run(server)[1].usage.cost is None


# What a model or a server may say in its own way: the choice, and what becomes of it.
ODD = {
    "filtered": (
        {"finish_reason": "content_filter", "message": {"content": None}},
        Completion("", "failed", 0, 0),
    ),
    "refused": (
        {"finish_reason": "stop", "message": {"content": None, "refusal": "No."}},
        Completion("No.", "stop", 1, 2),
    ),
    "thinking": (
        {"finish_reason": "length", "message": {"content": None}},
        Completion("", "length", 1, 2),
    ),
    "thinking in the text": (
        {"finish_reason": "stop", "message": {"content": "<think>\nHm, A?\n</think>\n\nNo."}},
        Completion("No.", "stop", 1, 2, thinking="Hm, A?"),
    ),
    "thinking begun by the server": (
        {"finish_reason": "stop", "message": {"content": "Hm, A?</think>No."}},
        Completion("No.", "stop", 1, 2, thinking="Hm, A?"),
    ),
    "thinking cut off": (
        {"finish_reason": "length", "message": {"content": "<think>\nHm"}},
        Completion("", "length", 1, 2, thinking="Hm"),
    ),
    "silent": (
        {"finish_reason": "stop", "message": {"content": None}},
        Completion("", "stop", 1, 2),
    ),
    "parts": (
        {
            "finish_reason": "stop",
            "message": {
                "content": [
                    {"type": "thinking", "thinking": "Hm"},
                    {"type": "text", "text": "It is "},
                    {"type": "text", "text": "so."},
                ]
            },
        },
        Completion("It is so.", "stop", 1, 2),
    ),
    "no reason": ({"message": {"content": "Yes."}}, Completion("Yes.", "stop", 1, 2)),
    "no reason, long": (
        {"message": {"content": "Yes and"}, "finish_reason": None, "tokens": 12},
        Completion("Yes and", "length", 1, 12),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_answer_in_a_form_of_its_own_is_read_and_asked_once(name):
    choice, wanted = ODD[name]
    usage = {"prompt_tokens": 1, "completion_tokens": choice.get("tokens", 2)}
    with OpenAIServer(fault=lambda sent: body({"choices": [choice], "usage": usage})) as server:
        completions, engine = run(server, [ask("x")], max_missing=1.0)
        assert len(server.sent) == 1
    assert completions == [wanted]
    assert engine.usage.failures == ({"content filter": 1} if name == "filtered" else {})


@pytest.mark.parametrize("usage", [{}, {"usage": {"prompt_tokens": None}}, {"usage": "free"}])
def test_answers_without_a_count_of_tokens_are_read_and_counted(caplog, usage):
    caplog.set_level(logging.INFO)
    reply = body({"choices": [{"finish_reason": "stop", "message": {"content": "Yes."}}]} | usage)
    with OpenAIServer(fault=lambda sent: reply) as server:
        completions, _ = run(server)
        assert len(server.sent) == len(QUESTIONS)
    assert completions == [Completion("Yes.", "stop", 0, 0)] * len(QUESTIONS)
    assert "20 answers without a count" in caplog.text


def test_half_a_character_in_an_answer_is_replaced_and_costs_no_second_request(store):
    message = {"content": "Fine \ud83d\ude00 and \ud83d"}
    reply = body({"choices": [{"finish_reason": "length", "message": message}]})
    with OpenAIServer(fault=lambda sent: reply) as server:
        for _ in range(2):
            completions, _ = run(server, [ask("x")], store)
            assert [each.text for each in completions] == ["Fine \U0001f600 and \ufffd"]
        assert len(server.sent) == 1


def test_another_model_than_the_one_asked_for_is_told_once(caplog):
    def named(name: str):
        choice = {"finish_reason": "stop", "message": {"content": "Yes."}}
        return lambda sent: body({"choices": [choice], "model": name})

    with OpenAIServer(fault=named(MODEL)) as server:
        run(server)
        assert "asked for" not in caplog.text
        server.fault = named("small-2024\n")
        with closing(opened(server)) as engine:
            for seed in range(2):
                list(engine.stream(QUESTIONS[:3], seed=seed))
    assert caplog.text.count("'small' was asked for, and answers come from 'small-2024'") == 1


@pytest.mark.parametrize("said", ["```json\n{said}\n```", "```\n{said}```", " {said}\n"])
def test_choice_in_a_code_fence_is_read(said):
    def reply(sent: Sent) -> Completion:
        return Completion(said.replace("{said}", json.dumps({"choice": sent.text})), "stop", 3, 2)

    with OpenAIServer(reply) as server:
        completions, _ = run(server, [ask(text, CHOICES) for text in ("tie", "A")])
    assert [each.text for each in completions] == ["tie", "A"]


GONE = {
    "suspended": error(403, "account suspended"),
    "daily limit": error(429, "100 requests a day"),
    "broken": error(500, "oops"),
    "odd": body({"error": {"message": "no longer served", "code": 400}}),
    "filters all": body(
        {"choices": [{"finish_reason": "content_filter", "message": {"content": None}}]}
    ),
}


@pytest.mark.parametrize("kind", GONE)
def test_server_that_fails_after_its_first_answers_ends_the_run(store, kind):
    requests = [ask(f"question {i}") for i in range(400)]
    # Wherever it happens, in flight at once or one after another.
    for served, concurrency in ((7, 16), (25, 1)):
        with OpenAIServer() as server:
            server.fault = lambda sent, s=server, n=served: GONE[kind] if len(s.sent) > n else None
            with pytest.raises(InputError) as caught:
                run(server, requests, store, concurrency=concurrency, max_retries=0)
            assert "\n" not in str(caught.value) and server.url in str(caught.value)
            assert "stored" in str(caught.value) or "--only-missing-outputs" in str(caught.value)
            assert len(server.sent) <= served + 20 + 2 * concurrency, "the rest is not tried"
        with OpenAIServer(port=server.port) as back:
            completions, engine = run(back, requests, store)
            assert completions == expected(requests)
            assert engine.usage.sent == len(back.sent) == 400 - served
        for path in store.folder.glob("*"):
            path.unlink()


def test_server_that_dies_half_way_ends_the_run_and_is_asked_for_the_rest(store):
    requests = [ask(f"question {i}") for i in range(200)]

    def dying(sent: Sent) -> Completion:
        if len(server.sent) == 100:
            server.die()
        return digest(sent)

    gone = pytest.raises(InputError, match=r"base_url: .* \(no connection\); start the server")
    with OpenAIServer(dying) as server, gone:
        run(server, requests, store, max_retries=1, concurrency=4)
    with OpenAIServer(port=server.port) as back:
        completions, engine = run(back, requests, store)
        assert completions == expected(requests)
        assert engine.usage.sent == 200 - len(server.sent)


@pytest.mark.parametrize(("spoilt", "ends"), [(2, False), (3, True)])
def test_limit_of_missing_answers(store, spoilt, ends):
    requests = [ask(f"question {i}") for i in range(100)]
    bad = {f"question {i * 30 + 5}" for i in range(spoilt)}

    def fault(sent: Sent):
        return error(400, "not this one") if sent.text in bad else None

    with OpenAIServer(fault=fault) as server:
        if ends:
            named = r"3 of 100 requests .* \(HTTP 400: 3\), and max_missing allows 2 % .* not this"
            with pytest.raises(InputError, match=named):
                run(server, requests, store)
        else:
            run(server, requests, store)
        before = len(server.sent)
        # The share is that of the whole, not of the few that are asked again.
        completions, engine = run(server, requests, store, max_missing=0.03)
        assert engine.usage.failed == spoilt
        assert len(server.sent) - before <= 2 * spoilt, "themselves, and whether it is there at all"
    assert sum(each.finish_reason == "failed" for each in completions) == spoilt


def test_prompts_that_always_fail_within_the_limit_end_no_later_run(store):
    requests = [ask(f"question {i}") for i in range(1300)]
    bad = {f"question {i}" for i in range(25)}

    def fault(sent: Sent):
        return error(400, "not this one") if sent.text in bad else None

    with OpenAIServer(fault=fault) as server:
        for _ in range(2):
            completions, engine = run(server, requests, store)
            assert engine.usage.failed == 25
    assert completions[25:] == expected(requests[25:])


def test_judge_that_ignores_the_format_ends_after_the_first_twenty():
    requests = [ask(f"question {i}", CHOICES) for i in range(240)]
    with OpenAIServer(lambda sent: Completion("Both are fine.", "stop", 900, 50)) as server:
        with pytest.raises(InputError, match=r"none of the choices: .*max_missing allows 2 %"):
            run(server, requests, concurrency=8)
        assert 20 <= len(server.sent) <= 20 + 8


def test_answer_that_drips_for_ever_has_failed_and_holds_up_no_other(store):
    def fault(sent: Sent):
        if sent.text != "question 3":
            return None
        return replace(usual(sent, digest(sent)), drip=0.2)

    with OpenAIServer(fault=fault) as server:
        began = time.monotonic()
        completions, engine = run(server, store=store, answer_timeout=1.0, max_missing=0.05)
        assert time.monotonic() - began < 5
        assert len(server.sent) == len(QUESTIONS), "it is not asked again"
    assert engine.usage.failures == {"took more than 1 s": 1}
    assert [each.finish_reason for each in completions].count("failed") == 1


def test_dead_proxy_is_named(monkeypatch):
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "all_proxy", "ALL_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with OpenAIServer() as server:
        dead = server.port
    # pragma: allowlist nextline secret
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hidden@127.0.0.1:{dead}")
    with pytest.raises(InputError, match=rf"the proxy 127\.0\.0\.1:{dead} \(set by HTTP_PR"):
        run("http://llm.invalid/v1", QUESTIONS[:1], max_retries=0)


def test_server_without_a_key_is_shown_none(monkeypatch):
    with OpenAIServer() as server:
        run(server, QUESTIONS[:1])
        monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
        run(server, QUESTIONS[:1])
        # pragma: allowlist nextline secret
        credentials.hand_over({"openai": {"api_key": "mine"}, "other": {"api_key": "theirs\n"}})
        run(server, QUESTIONS[:1])
        run(server, QUESTIONS[:1], credentials="other")
    shown = [each.authorization for each in server.sent]
    assert shown == [None, *(f"Bearer {k}" for k in ("from the environment", "mine", "theirs"))]


def test_key_that_cannot_be_sent_is_not_quoted():
    credentials.hand_over({"openai": {"api_key": "sk-\nsecret"}})  # pragma: allowlist secret
    with pytest.raises(InputError, match=r"^credentials: openai\.api_key: holds") as caught:
        opened("http://127.0.0.1:9/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": "https://me:secret@host/v1"}, "base_url"),  # pragma: allowlist secret
        ({"base_url": "https://host/v1?key=secret"}, "base_url"),
        ({"base_url": "host/v1?secret"}, "base_url"),
        *(
            ({"base_url": f"http://{place}/v1"}, "must be an address such as")
            for place in ("", "host:99999", "host:secret", "[::1", "my host", "a\0b", "a" * 2000)
        ),
        ({"extra": {"messages": "secret"}}, "extra: messages can't be given"),
        ({"prompt_price": 1.0}, "prompt_price, completion_price"),
        ({"api_key": "secret"}, "api_key"),  # pragma: allowlist secret
    ],
)
def test_bad_settings_are_named_and_no_key_in_them_is_quoted(fields, message):
    with pytest.raises(ValidationError, match=message) as caught:
        OpenAIParameters(**{"base_url": "http://host/v1", "model": "x"} | fields)
    assert "secret" not in str(caught.value)


def test_engine_and_model_folder_exclude_each_other(random_checkpoint):
    openai = EngineParameters(kind="openai", openai={"base_url": "http://host/v1", "model": "x"})
    with pytest.raises(InputError, match="openai asks a server and can't load"):
        open_engine(openai, random_checkpoint.folder)
    with pytest.raises(InputError, match="transformers needs a model"):
        open_engine(EngineParameters())
    with pytest.raises(ValidationError, match="base_url and model are missing"):
        EngineParameters(kind="openai")


def test_identity_is_what_shapes_a_request():
    def identity(**fields) -> str:
        with closing(opened("http://127.0.0.1:9/v1", **fields)) as engine:
            return engine.identity

    plain = identity(extra={"a": 1, "b": 2})
    assert plain == identity(
        extra={"b": 2, "a": 1}, concurrency=1, timeout=1.0, max_retries=0, prompt_price=1.0,
        completion_price=1.0, credentials="other",
    )  # fmt: skip
    changes = [
        {"base_url": "http://127.0.0.1:8/v1"}, {"model": "other"}, {"extra": {"a": 1}},
        {"choices": "text"}, {"leave_out": ("temperature",)},
    ]  # fmt: skip
    identities = {identity(**{"extra": {"a": 1, "b": 2}} | change) for change in changes}
    assert len(identities - {plain}) == len(changes)


def test_works_where_an_event_loop_is_running_already():
    async def notebook(server: OpenAIServer) -> list[Completion]:
        return run(server)[0]

    # In a thread without a loop; a browser of other tests may have one running in this one.
    with OpenAIServer() as server, ThreadPoolExecutor(1) as thread:
        answers = thread.submit(asyncio.run, notebook(server)).result()
    assert answers == expected(QUESTIONS)


@pytest.mark.parametrize("fault", ["hangs", error(429, "slow down", **{"Retry-After": "9"})])
def test_run_that_is_interrupted_does_not_wait_for_what_is_under_way(fault):
    with OpenAIServer(fault=lambda sent: fault if len(server.sent) > 3 else None) as server:
        with closing(opened(server)) as engine:
            stream = engine.stream(QUESTIONS, seed=0)
            next(stream)
            time.sleep(0.2)
            interrupted = time.monotonic()
        assert time.monotonic() - interrupted < 1


def test_killed_run_asks_only_what_is_missing_and_what_was_under_way(tmp_path):
    count, concurrency = 500, 16
    script = Path(__file__).with_name("ask_many.py")
    with OpenAIServer(delay=0.02) as server:
        command = [sys.executable, script, server.url, tmp_path / "store", str(count)]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while server.answered < 0.7 * count and first.poll() is None:
            time.sleep(0.002)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert first.returncode == -signal.SIGKILL, "it must not have been done already"
        sent_first = len(server.sent)
        finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        sent_second = len(server.sent) - sent_first
    assert int(finished.stdout) == count, "every request has its own completion"
    assert 0.7 * count <= sent_first < count
    assert count <= sent_first + sent_second <= count + concurrency
    lines = [
        line
        for path in (tmp_path / "store").glob("*.jsonl")
        for line in path.read_text().splitlines()
        if line.endswith("}}")
    ]
    keys = [key for line in lines for key in json.loads(line)]
    assert len(keys) == len(set(keys)) == count
    print(f"{sent_first} requests before the kill, {sent_second} after it")  # pytest -rP
