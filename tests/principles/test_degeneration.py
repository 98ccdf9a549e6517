import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sami_pipeline.principles.degeneration import is_degenerate, repetition_share

SENTENCE = "The cat sat on the mat and looked at the moon. "
DEGENERATE = {
    "symbol list": "1. /* 2. /* 3. /* 4. /* 5. /*",
    "short symbol list": "/* 2. /* 3. /*",
    "exclamation marks": "!!!!!!",
    "empty counters": "1.\n2.\n3.\n4.\n5.",
    "one digit": "1" * 300,
    "one character": "a" * 50,
    "no spaces": "thecat" * 10,
    "Chinese sentence": "我喜欢猫。" * 8,
    "short word loop": "no no no no no no",
    "word loop": "the answer is " * 30,
    "sentence loop": SENTENCE * 4,
    "loop in changing case": (SENTENCE + SENTENCE.upper()) * 2,
    "loop after a beginning": "Here is what I know about the moon. " + "It is very round. " * 20,
    "list differing in numbers": "\n".join(f"{i}. Use the product well." for i in range(1, 9)),
    "bold list differing in numbers": "\n".join(f"**{i}.** Use it." for i in range(1, 12)),
    "steps differing in numbers": "\n".join(f"Step {i}: Go on." for i in range(1, 12)),
    "shuffled short items": "\n".join(
        f"{i}. {({'r': 'red', 'g': 'green', 'b': 'blue'})[letter]}"
        for i, letter in enumerate("rbrgbrgrbgbrrgbb")
    ),
    "half a sentence then symbols": "Here it is: " + "!? " * 60,
    "whole sentences then symbols": "The moon is round, and it shines on the sea at night. "
    + "!" * 90,
}
LEGITIMATE = {
    "empty": "",
    "one word": "Yes.",
    "numbered answer": "42.",
    "large number": "1,000,000,000,000",
    "periodic fraction": "0.142857142857142857142857142857",
    "laugh": "Ha ha ha!",
    "twice": SENTENCE * 2,
    "prose": (
        "The French Revolution began in 1789. It ended the monarchy, and it changed the law, the "
        "army and the church. Historians still argue about whether it ended with the fall of "
        "Robespierre in 1794, or with the coup of Napoleon five years later."
    ),
    "counting": "\n".join(map(str, range(1, 101))),
    "multiplication table": "\n".join(f"3 x {i} = {3 * i}" for i in range(1, 13)),
    "code": (
        "```python\ndef area(shape):\n"
        "    if shape.kind == 'circle':\n        return 3.14 * shape.r ** 2\n"
        "    elif shape.kind == 'square':\n        return shape.a ** 2\n"
        "    elif shape.kind == 'rectangle':\n        return shape.a * shape.b\n"
        "    else:\n        raise ValueError(shape.kind)\n```"
    ),
    "html": "<ul>\n"
    + "\n".join(f'<li class="i"><a href="#">{w}</a></li>' for w in ("Home", "About", "News"))
    + "\n</ul>",
    "parallel list": "\n".join(
        f"- {what} can help you to {effect} more easily."
        for what, effect in (("Sleep", "think"), ("Sport", "rest"), ("Water", "breathe"))
    ),
    "table": (
        "| Name | Age | City |\n|------|-----|------|\n"
        "| Ann | 30 | Rome |\n| Bob | 25 | Oslo |\n| Eva | 41 | Bern |\n| Max | 19 | Riga |"
    ),
    "refrain": (
        "The wind goes over the hill tonight,\nand home, my love, and home.\n"
        "The lamp in the window gives no light,\nand home, my love, and home.\n"
        "The road I took was the wrong, not right,\nand home, my love, and home.\n"
    ),
    "json": '[{"name": "Ann", "age": 30}, {"name": "Bob", "age": 25}, {"name": "Eva", "age": 41}]',
    "good text with a short loop": " ".join(f"word{i}" for i in range(60)) + " no" * 10,
}


@pytest.mark.parametrize("text", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_text_that_mostly_repeats_itself_is_degenerate(text):
    assert is_degenerate(text)


@pytest.mark.parametrize("text", LEGITIMATE.values(), ids=LEGITIMATE.keys())
def test_legitimate_text_is_not_degenerate(text):
    assert not is_degenerate(text)


def test_share_of_words_is_the_published_duplicate_four_gram_rate():
    words = ["a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1", "a1", "b1", "c1", "d1", "e1", "f1"]
    # 11 four-grams; abcd, bcde and cdef come twice.
    assert repetition_share(" ".join(words)) == pytest.approx(3 / 11)


def test_share_of_a_loop_leaves_out_its_first_round():
    assert repetition_share("ab" * 10) == pytest.approx(0.9)


def test_lines_count_by_their_length():
    lines = ["x1 y1", "x2 y2", "x1 y1", "z3 w3", "x2 y2", "v4 u4", "x1 y1"]
    assert repetition_share("\n".join(lines)) == pytest.approx(3 / 7)


def test_share_grows_with_every_further_round():
    shares = [repetition_share(SENTENCE * rounds) for rounds in range(1, 12)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.9


def test_threshold_is_the_caller_s():
    share = repetition_share(SENTENCE * 2)
    assert is_degenerate(SENTENCE * 2, threshold=share - 0.01)
    assert not is_degenerate(SENTENCE * 2, threshold=share)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet="a1. #/*!\n", max_size=120))
def test_share_is_between_zero_and_one_for_any_text(text):
    assert 0 <= repetition_share(text) < 1
