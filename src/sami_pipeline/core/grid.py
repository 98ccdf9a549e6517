"""Grids of prompts and responses, as text and as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Grid:
    """One query under n_c constitutions with n_r responses, as token ids.

    Attributes:
        prompt_ids: n_c sequences; prompt i is the query under constitution i.
        response_ids: n_r sequences; response j was written under constitution j.

    Prompt and response are tokenised apart and joined as ids, so no merge across their border
    can shift which tokens count as the response.

    Raises:
        ValueError: no prompt or no response, or one of them is empty.
    """

    prompt_ids: Sequence[Sequence[int]]
    response_ids: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        for name, sequences in (
            ("prompt_ids", self.prompt_ids),
            ("response_ids", self.response_ids),
        ):
            if len(sequences) == 0:
                raise ValueError(f"{name}: a grid needs at least one sequence")
            for index, sequence in enumerate(sequences):
                if len(sequence) == 0:
                    raise ValueError(
                        f"{name}[{index}]: is empty; a sequence needs at least one token"
                    )

    @property
    def shape(self) -> tuple[int, int]:
        """(n_constitutions, n_responses)."""
        return len(self.prompt_ids), len(self.response_ids)

    @property
    def response_tokens(self) -> int:
        """Number of tokens of all responses together, each counted once."""
        return sum(len(response) for response in self.response_ids)


@dataclass(frozen=True)
class TextGrid:
    """One query under n constitutions with n responses, as text.

    Attributes:
        prompts: n rendered prompts, special tokens written out.
        responses: n responses.
        ended: for each response, whether it ended by itself (and so has an end-of-sequence token
            to learn) rather than at the token limit.
    """

    prompts: Sequence[str]
    responses: Sequence[str]
    ended: Sequence[bool]

    def tokenise(self, tokenizer: PreTrainedTokenizerBase, *, train_on_eos: bool = True) -> Grid:
        """Return the grid of token ids.

        Args:
            tokenizer: the student's tokenizer; no special tokens are added to what is written.
            train_on_eos: append the end-of-sequence token to responses that ended by themselves.
        """
        end = (
            [tokenizer.eos_token_id] if train_on_eos and tokenizer.eos_token_id is not None else []
        )

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        return Grid(
            prompt_ids=[encode(prompt) for prompt in self.prompts],
            response_ids=[
                encode(response) + (end if ended else [])
                for response, ended in zip(self.responses, self.ended, strict=True)
            ],
        )
