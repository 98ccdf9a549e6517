import pytest
from examples import HOSTILE

from sami_pipeline.reporting.blocks import blocks


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", [("text", "")]),
        ("Prose.\n\nMore.", [("text", "Prose.\n\nMore.")]),
        ("Do:\n1. One\n   on\n2) Two\n- x\nEnd", [
            ("text", "Do:"), ("item", "1. One\n   on"), ("item", "2) Two"), ("item", "- x"),
            ("text", "End"),
        ]),
        ("```python\n1. x\n```\nSo", [("code", "```python\n1. x\n```"), ("text", "So")]),
        ("~~~~\n```\n~~~~", [("code", "~~~~\n```\n~~~~")]),
        ("```\nno end", [("code", "```\nno end")]),
        ("1.5 is a number\n-5 too\n2024. A year", [
            ("text", "1.5 is a number\n-5 too\n2024. A year"),
        ]),
    ],
)  # fmt: skip
def test_code_and_list_items_are_told_from_the_rest(text, kinds):
    assert blocks(text) == kinds


@pytest.mark.parametrize("text", [HOSTILE, "```\n```\n", "\n\n- a\n\n  b\n```x", "a\r\n1. b\r\n"])
def test_blocks_joined_are_the_text_again(text):
    assert "\n".join(block for _, block in blocks(text)) == text
