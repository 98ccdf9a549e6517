"""The benchmark compares ways of computing the same numbers."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from sami_pipeline.principles.constitutions import tabulate_principles

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import blind_reading
import held_out_compliance
import sami_step


@pytest.fixture(scope="module")
def plain():
    return sami_step.measure(sami_step.PLAIN, 2, "float32", "tiny", "cpu", 1)


@pytest.mark.parametrize("variant", [sami_step.SAMI, sami_step.TWO_PASS, sami_step.PUBLISHED])
def test_every_variant_has_the_loss_and_gradient_of_the_plain_step(variant, plain):
    result = sami_step.measure(variant, 2, "float32", "tiny", "cpu", 1)
    for name in ("loss", "gradient_norm"):
        assert result[name] == pytest.approx(plain[name], rel=1e-3), name
    assert len(result["seconds"]) == 1
    assert result["peak_bytes"] > 0


def test_the_plain_step_repeats_prompts_and_this_project_does_not(plain):
    ours = sami_step.measure(sami_step.SAMI, 2, "float32", "tiny", "cpu", 1)
    grid = sami_step.make_grid(2, 512, shared=True)
    prompts = sum(map(len, grid.prompt_ids))
    assert plain["tokens"] == 2 * prompts + 2 * grid.response_tokens
    assert ours["tokens"] == prompts - 320 + 2 * grid.response_tokens
    assert plain["flops"] > ours["flops"]


def test_a_result_becomes_a_table_and_its_section_of_the_page(plain, tmp_path, monkeypatch):
    runs = {sami_step.PLAIN: [plain], sami_step.SAMI: [{"failed": "out of memory"}]}
    text = sami_step.table(
        {"n": 2, "numerics": "float32", "ceiling": 1e11, "runs": runs}, on_gpu=False
    )
    assert "| plain | " in text
    assert "out of memory" in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nafter\n")
    monkeypatch.setattr(sami_step, "PAGE", page)
    sami_step.write_page("cpu", text)
    written = page.read_text()
    assert text in written
    assert "old" not in written
    assert written.startswith("before") and written.endswith("after\n")


def test_steerability_on_development_queries_is_what_is_followed_only_when_asked():
    principle = {
        "id": "brief", "principle": "Be brief.", "antithesis": "Go on.",
        "check": {"name": "maximum_words", "words": 5},
        "antithesis_check": {"name": "minimum_words", "words": 6},
    }  # fmt: skip
    principles = tabulate_principles(
        {"math.yml": {"category": "math", "principles": [principle]}}, ["math"]
    )
    long, short = "one two three four five six seven", "one two"
    answers = pd.DataFrame(
        [
            (model, "q", "math", 1, constitution, json.dumps([["brief", stance]]), text, "stop")
            for model, texts in (("obeys", (short, long)), ("always_brief", (short, short)))
            for constitution, stance, text in (
                ("desired", "principle", texts[0]), ("contrasting", "antithesis", texts[1]),
            )
        ],
        columns=["model", "question_id", "category", "turn", "constitution", "stances", "answer",
                 "finish_reason"],
    )  # fmt: skip
    table = held_out_compliance.statements(answers, principles).set_index("model")
    values = ["desired", "contrasting", "steerability"]
    assert table.loc["obeys", values].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["always_brief", values].tolist() == [1.0, 0.0, 0.0]


def phrases(check: str) -> list[str]:
    """Return the words that a check looks for, lower case."""
    values = json.loads(check)
    return [text.casefold() for text in [values.get("text"), *values.get("phrases", [])] if text]


def test_held_out_principles_ask_for_nothing_that_is_trained():
    trained = held_out_compliance.principles_of(held_out_compliance.DATA / "01_raw" / "principles")
    held_out = held_out_compliance.principles_of(
        Path(held_out_compliance.__file__).with_name("held_out_principles")
    )
    assert set(held_out["category"]) == set(trained["category"])
    asked = {
        name: {
            text
            for column in ("check", "antithesis_check")
            for check in table[column]
            for text in phrases(check)
        }
        for name, table in (("trained", trained), ("held out", held_out))
    }
    assert len(asked["held out"]) >= 12
    assert not asked["trained"] & asked["held out"]


def test_blind_reading_hides_who_wrote_what_and_finds_them_again():
    answers = pd.DataFrame(
        [
            (model, str(question), constitution, 1, json.dumps({"text": "asked"}), f"by {model}")
            for model in ("sft", "sami")
            for question in range(81, 161)
            for constitution in ("desired", "contrasting")
        ],
        columns=["model", "question_id", "constitution", "turn", "prompt", "answer"],
    )
    texts, names = blind_reading.pairs(answers, ("sft", "sami"))
    assert len(texts) == 40
    firsts = {name: text.split("--- A:\nby ")[1].split("\n")[0] for name, text in texts.items()}
    assert {name: order[0] for name, order in names.items()} == firsts
    assert set(firsts.values()) == {"sft", "sami"}, "neither is always A"
    # Whoever prefers one model everywhere is counted for it.
    verdicts = {name: ["AB"[order.index("sami")], "tie", "none"] for name, order in names.items()}
    counted = blind_reading.score(verdicts, names)
    assert counted.loc[("desired", "follows the rule better"), "sami"] == 20
    assert counted.loc[("contrasting", "is the better text"), "tie"] == 20
    said = blind_reading.sign_tests(counted, ("sft", "sami")).splitlines()
    assert said[0] == "desired follows the rule better: sami 20 : 0 sft, p = 1.9e-06"
    assert said[1] == "desired is the better text: sami 0 : 0 sft, p = 1"
    assert len(blind_reading.pairs(answers, ("sft", "sami"), every=1)[0]) == 160
