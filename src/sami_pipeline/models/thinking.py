"""What a model thinks before it responds, told from its response."""

from __future__ import annotations

# How families part thinking from the response: Qwen 3, DeepSeek R1, SmolLM3, GLM 4.5; Magistral;
# gpt-oss, whose response is the message of its last channel.
_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
# Where these are single tokens of a model.
MARK_TOKENS = frozenset(
    {"<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "<|message|>"}
)


def is_thinking(prompt: str) -> bool:
    """Return whether the text before a response has begun to think already (DeepSeek R1, QwQ)."""
    return any(prompt.rstrip().endswith(opening) for opening, _ in _MARKS)


def split_thinking(text: str, *, begun: bool = False) -> tuple[str, str]:
    """Return the thinking and the response of what a model wrote.

    Args:
        text: with the marks of thinking in it.
        begun: it goes on with thinking that the prompt has begun.

    Returns:
        Both, the marks left out. The thinking is "" where there is none; the response is "" where
        the thinking came to no end. Marks in the midst of a response are text.
    """
    for opening, closing in _MARKS:
        opened = text.lstrip().startswith(opening)
        # A server may have left the opening mark out.
        lone = closing in text and opening not in text
        if opened or lone or (begun and closing in text):
            thought, _, response = text.partition(closing)
            return thought.strip().removeprefix(opening).strip(), response.lstrip()
    return (text.strip(), "") if begun else ("", text)
