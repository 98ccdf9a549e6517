"""Verdicts are read as FastChat reads them where a text holds one."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sami_pipeline.evaluation.verdict_parser import (
    CONTRADICTORY,
    INVALID,
    NO_VERDICT,
    comparison_verdict,
    final_response_verdict,
    rating_verdict,
)

CASES = Path(__file__).parents[3] / "shared" / "cases" / "verdict_texts.jsonl"

RATINGS = [str(number) for number in range(1, 11)] + ["1.5", "7.5", "9.25"]
EXPLANATION = st.text().filter(lambda text: "[" not in text and "]" not in text)
# What texts of judges are made of, verdicts and what only looks like one.
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["[[A]]", "[[B]]", "[[C]]", "[[D]]", "[A]", "[[", "]]", "[[a]]", "[[ A ]]", "[[[A]]]",
             "[[7]]", "[[10]]", "[[7.5]]", "[[0]]", "[[11]]", "[8]", "[[7.]]", "[[.5]]", "[[-3]]",
             "[[rating]]", "[[٧]]", "[[²]]", "[[9" + "9" * 400 + "]]", "\n", "Rating: "]
        ),
        st.text(),
    )
).map("".join)  # fmt: skip


def fastchat_comparison(text: str) -> str:
    """Return the verdict by FastChat's rule: is it anywhere in the text?"""
    return next((verdict for verdict in "ABC" if f"[[{verdict}]]" in text), INVALID)


def fastchat_rating(text: str) -> float | None:
    """Return the rating by FastChat's rule: the first, two brackets before one."""
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    return float(found.group(1)) if found else None


@pytest.fixture(scope="module")
def mt_bench_prompts(project_folder) -> list[dict[str, str]]:
    path = project_folder / "data" / "01_raw" / "mt_bench" / "judge_prompts.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_verdict_that_fastchats_prompts_ask_for_is_read_as_fastchat_reads_it(
    mt_bench_prompts,
):
    read = {"pairwise": 0, "single": 0}
    for prompt in mt_bench_prompts:
        instructions = prompt["system_prompt"] + prompt["prompt_template"]
        read[prompt["type"]] += 1
        if prompt["type"] == "pairwise":
            asked = re.findall(r'"(\[\[[A-Z]\]\])" ', instructions)
            assert asked == ["[[A]]", "[[B]]", "[[C]]"]
            for output in asked:
                assert comparison_verdict(f"Both are right. {output}") == output[2]
                assert fastchat_comparison(f"Both are right. {output}") == output[2]
        else:
            (example,) = re.findall(r'for example: "(Rating: \[\[5\]\])"', instructions)
            for rating in RATINGS:
                output = example.replace("5", rating)
                assert rating_verdict(output) == rating
                assert fastchat_rating(output) == float(rating)
    assert read == {"pairwise": 4, "single": 4}


@given(EXPLANATION, st.sampled_from("ABC"), EXPLANATION)
def test_comparison_with_one_verdict_is_read_as_fastchat_reads_it(before, verdict, after):
    text = f"{before}[[{verdict}]]{after}"
    assert comparison_verdict(text) == fastchat_comparison(text) == verdict


@given(EXPLANATION, st.sampled_from(RATINGS), st.booleans(), EXPLANATION)
def test_text_with_one_rating_is_read_as_fastchat_reads_it(before, rating, doubled, after):
    text = f"{before}[[{rating}]]{after}" if doubled else f"{before}[{rating}]{after}"
    assert rating_verdict(text) == rating
    assert fastchat_rating(text) == float(rating)


@pytest.mark.parametrize(
    ("text", "ours", "fastchats"),
    [
        ('I may answer "[[A]]", "[[B]]" or "[[C]]". B is right. [[B]]', "B", "A"),
        ("At first sight [[A]], but its sum is wrong: [[B]]", "B", "A"),
        ("Assistant A's answer quotes [[A]]. Neither is better. [[C]]", "C", "A"),
        ("Not [[B]]: they are alike. [[C]]", "C", "B"),
        ("[[B]]? No, [[A]]", "A", "A"),
    ],
)
def test_own_verdict_counts_where_another_is_only_mentioned(text, ours, fastchats):
    assert comparison_verdict(text) == ours
    assert fastchat_comparison(text) == fastchats


@pytest.mark.parametrize(
    ("text", "ours", "fastchats"),
    [
        ('The format is "Rating: [[5]]". Rating: [[8]]', "8", 5),
        ("It would be [[9]] without the slip. Rating: [[6.5]]", "6.5", 9),
        ("As source [1] says. Rating: [[6]]", "6", 6),
        ("See [1] and [2]. Rating: [4]", "4", 1),
    ],
)
def test_own_rating_counts_where_another_is_only_mentioned(text, ours, fastchats):
    assert rating_verdict(text) == ours
    assert fastchat_rating(text) == fastchats


@given(PIECES)
def test_comparison_never_raises_and_differs_only_where_verdicts_differ(text):
    verdict = comparison_verdict(text)
    assert verdict in ("A", "B", "C", *NO_VERDICT)
    if fastchat_comparison(text) not in (verdict, INVALID):
        assert len(set(re.findall(r"\[\s*\[\s*([ABC])\s*\]\s*\]", text))) > 1


@given(PIECES)
def test_rating_never_raises_and_is_from_one_to_ten_or_invalid(text):
    verdict = rating_verdict(text)
    assert verdict in NO_VERDICT or 1 <= float(verdict) <= 10
    assert re.fullmatch(r"[1-9](\.[0-9]+)?|10|invalid|contradictory", verdict)


@pytest.mark.parametrize(
    "text", ["", "A", "[[D]]", "[[a]]", "Answer A is better", "See [A] and [B] in the text."]
)
def test_text_without_a_verdict_is_invalid_and_no_tie(text):
    assert comparison_verdict(text) == INVALID


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[0]]", INVALID),
        ("[[11]]", INVALID),
        ("[[0.5]]", INVALID),
        ("[[10.1]]", INVALID),
        ("[[7]] out of [[100]]", INVALID),
        ("[[rating]]", INVALID),
        ("seven", INVALID),
        ("[[7.0]]", "7"),
        ("[[7.]]", "7"),
        ("[[007]]", "7"),
    ],
)
def test_rating_outside_one_to_ten_is_invalid(text, verdict):
    assert rating_verdict(text) == verdict


# What verdict_texts.jsonl says and the parser does not, by line, and why.
DISAGREED = {21: "FastChat reads the only [number] of a text, wherever it stands, and so do we"}


@pytest.mark.skipif(not CASES.is_file(), reason="needs the folder of cases")
def test_collected_texts_are_read_as_a_careful_reader_reads_them():
    wrong = []
    for number, line in enumerate(CASES.read_text("utf-8").splitlines(), start=1):
        case = json.loads(line)
        read = comparison_verdict if case["kind"] == "comparison" else rating_verdict
        found = read(case["text"])
        expected = NO_VERDICT if case["verdict"] == INVALID else (case["verdict"],)
        wrong += [number] * (found not in expected)
    assert wrong == sorted(DISAGREED)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[A]", "A"),
        ("[[ A ]]", "A"),
        ("[[Assistant B]]", "B"),
        ("final verdict: [B]", "B"),
        ("[[\uff23]]", "C"),
        ("<think>Perhaps [[A]]?</think>\n[[B]]", "B"),
        ("Perhaps [[A]]</think>\nMy verdict: [[B]]", "B"),
        ("<think>It must be [[A]]", INVALID),
        ("[[B]] because its answer asks me to print [[A]], which I ignore.", "B"),
        ("Asked for [[A]] if A is better or [[B]] if B is, I choose:\n[[C]]", "C"),
        ("Final verdict: [[A]] (and not [[B]])", "A"),
        ("My final verdict is: [[A]]/[[B]]", CONTRADICTORY),
        ("Verdict: [[A]]\n\nOn reflection:\nVerdict: [[B]]", CONTRADICTORY),
        ("[[A]]\n[[B]]", CONTRADICTORY),
    ],
)
def test_comparisons_own_verdict_is_told_from_others(text, verdict):
    assert comparison_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Rating: [[7/10]]", "7"),
        ("Rating: **7**", "7"),
        ("Rating: [[7,5]]", "7.5"),
        ("See reference [1]. Rating: 6/10", "6"),
        ("Rating: [[8]]. A perfect answer would be [[10]].", "8"),
        ("<think>[[3]]</think>Rating: [[8]]", "8"),
        ("Rating: [[8]]\nRating: [[6]]", CONTRADICTORY),
        ("Rating: 85", INVALID),
        ("Rating: [[-1]]", INVALID),
    ],
)
def test_ratings_own_verdict_is_told_from_others(text, verdict):
    assert rating_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        ("Both are fine.\n\n[[A]]", "A", "A"),
        ("My final verdict is: [[A]].", "A", "A"),
        ("One could say [[A]], since its sum", "A", INVALID),
        ("Assistant B writes [[A]]", "A", INVALID),
        ("The sum of B is wrong. [[A]]", "A", "A"),
        ("[[B]] at first sight.\nBut no: [[A]]", CONTRADICTORY, INVALID),
        ("Verdict: [[A]]\nStill, there is more to say", "A", INVALID),
    ],
)
def test_verdict_of_a_text_that_was_cut_off_counts_only_last_and_alone(text, whole, cut):
    assert comparison_verdict(text) == whole
    assert comparison_verdict(text, truncated=True) == cut


@pytest.mark.parametrize(
    ("text", "truncated", "verdict"),
    [
        ("Explanation: B is longer.\n\nFinal Response: A", False, "A"),
        ("**Final Response:** 'B'", False, "B"),
        ("Final Response: [[C]]", False, "C"),
        ("Final Response: A is better than B", False, "A"),
        ("I end with Final Response: 'A' or 'B'.\nFinal Response: Assistant B", False, "B"),
        ("<think>Final Response: B</think>Final Response: A", False, "A"),
        ("My final verdict is: [[B]]", False, "B"),
        ("Final Response: A and B", False, CONTRADICTORY),
        ("Final Response: A\nFinal Response: B", False, CONTRADICTORY),
        ("Final Response: a tie", False, INVALID),
        ("Assistant A is better.", False, INVALID),
        ("Final Response: B", True, "B"),
        ("Final Response: B, because", True, INVALID),
        ("Final Response: A\nOr rather: Final Response: B", True, INVALID),
    ],
)
def test_published_form_of_a_verdict_is_read(text, truncated, verdict):
    assert final_response_verdict(text, truncated) == verdict
