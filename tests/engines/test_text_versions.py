"""What decides the text of a request is part of the key of stored texts, by a version."""

import ast
import hashlib

import pytest

from sami_pipeline.code_versions import PACKAGE_FOLDER, statement
from sami_pipeline.engines import GenerationRequest, SamplingParameters, store
from sami_pipeline.engines.store import completion_key
from sami_pipeline.models.prompts import Prompt

# From a request to its text: prompt rendering, cutting at stop strings, sampling.
LOCAL = (
    "models.prompts:Prompt", "models.prompts:render_messages", "models.prompts:_templated",
    "models.tokens:TextEncoder", "models.tokens:end_token_ids", "engines.tokens:encode_prompts",
    "engines.tokens:split_too_long", "engines.tokens:read_completion",
)  # fmt: skip
_ENGINE = "engines.transformers_engine:TransformersEngine"
DEFINITIONS = {
    "openai": (
        "models.prompts:Prompt", "engines.openai_engine:OpenAIEngine._completion",
        "engines.openai_engine:_Choice", "engines.openai_engine:_request_fields",
        "engines.openai_engine:_extra_fields", "engines.openai_engine:_chosen",
    ),
    "transformers": (
        *LOCAL, f"{_ENGINE}._row", f"{_ENGINE}._extend", f"{_ENGINE}._has_ended",
        f"{_ENGINE}._completion", f"{_ENGINE}._choose", "engines.transformers_engine:_Drawn",
        "engines.sampling:uniform_numbers", "engines.sampling:draw_tokens",
        "engines.sampling:_weights", "engines.sampling:_nucleus", "engines.sampling:_inverse",
    ),
    "vllm": (*LOCAL, "engines.vllm_engine:VllmEngine", "engines.vllm_worker:Model.generate"),
}  # fmt: skip
# By kind of engine, the version in engines/store.py and a hash of its definitions.
KNOWN = {
    "openai": (2, "b23e0b48cab9bbba"),  # pragma: allowlist secret
    "transformers": (2, "903c638ad041701d"),  # pragma: allowlist secret
    "vllm": (3, "8f86a6097c9a7ae8"),  # pragma: allowlist secret
}


def hash_of(kind: str) -> str:
    found = ""
    for definition in DEFINITIONS[kind]:
        module, _, names = definition.partition(":")
        node = ast.parse((PACKAGE_FOLDER / f"{module.replace('.', '/')}.py").read_bytes())
        for name in names.split("."):
            inner = [each for each in node.body if getattr(each, "name", None) == name]
            assert inner, f"{definition} is gone; name here what took its place"
            (node,) = inner
        found += statement(node)
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def test_there_is_a_version_of_every_kind_of_engine():
    assert store.TEXT_VERSIONS.keys() == DEFINITIONS.keys() == KNOWN.keys()


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_change_of_what_decides_a_text_raises_its_version(kind):
    assert (store.TEXT_VERSIONS[kind], hash_of(kind)) == KNOWN[kind], (
        f"What decides the texts of {kind} has changed. If the same request can have another text "
        f"now, raise TEXT_VERSIONS[{kind!r}] in engines/store.py, and its stored texts are asked "
        f"again; either way write its version and hash here: {hash_of(kind)!r}"
    )


def test_another_version_is_another_key_for_its_kind_of_engine_alone(monkeypatch):
    request = GenerationRequest(Prompt(text="word"), SamplingParameters(8))
    keys = {kind: completion_key(f"{kind} model", request, 0) for kind in KNOWN}
    monkeypatch.setitem(store.TEXT_VERSIONS, "vllm", 99)
    changed = {kind for kind in KNOWN if completion_key(f"{kind} model", request, 0) != keys[kind]}
    assert changed == {"vllm"}


def test_the_first_version_leaves_the_keys_of_earlier_runs_as_they_were(monkeypatch):
    monkeypatch.setitem(store.TEXT_VERSIONS, "openai", 1)
    request = GenerationRequest(Prompt(text="word"), SamplingParameters(8))
    key = "7717ef01723086081be9baedf49389d3" + (  # pragma: allowlist secret
        "7057254a5906fb72780830114d0bb858"  # pragma: allowlist secret
    )
    assert completion_key("openai model", request, 0) == key
