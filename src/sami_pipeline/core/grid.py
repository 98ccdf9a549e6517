"""Grids of prompts and responses, as text and as token ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sami_pipeline.models.tokens import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Grid:
    """One query under n_c constitutions with n_r responses, as token ids.

    Attributes:
        prompt_ids: n_c sequences; prompt i is the query under constitution i.
        response_ids: n_r sequences; response j was written under constitution j.

    No merge across the border of prompt and response may shift which tokens count as the response;
    ``TextGrid.tokenise`` sees to it.

    Raises:
        ValueError: no prompt or no response, or one of them is empty or holds something else than
            token ids.
    """

    prompt_ids: Sequence[Sequence[int]]
    response_ids: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        for name, sequences in (
            ("prompt_ids", self.prompt_ids),
            ("response_ids", self.response_ids),
        ):
            if isinstance(sequences, str) or len(sequences) == 0:
                raise ValueError(f"{name}: a grid needs at least one sequence of token ids")
            for index, sequence in enumerate(sequences):
                if isinstance(sequence, str):
                    raise ValueError(
                        f"{name}[{index}]: is text, where token ids belong; use TextGrid, or "
                        "tokenise it"
                    )
                if not isinstance(sequence, Sized) or not all(map(_is_token_id, sequence)):
                    raise ValueError(
                        f"{name}[{index}]: must be a sequence of token ids, which are whole "
                        "numbers from 0"
                    )
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


def _is_token_id(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) >= 0
    except TypeError:
        return False


@dataclass(frozen=True)
class TextGrid:
    """One query under n constitutions with n responses, as text.

    Attributes:
        prompts: n rendered prompts, special tokens written out.
        responses: n responses.
        ended: for each response, whether it ended by itself (and so has a token to learn that
            ends it) rather than at the token limit.
        end_tokens: for each response, the token that ended it when it was generated, written out,
            "" where that is not known; None for no response is.

    Raises:
        ValueError: something else than texts, or not as many of ``ended`` as of the responses.
    """

    prompts: Sequence[str]
    responses: Sequence[str]
    ended: Sequence[bool]
    end_tokens: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, texts in (("prompts", self.prompts), ("responses", self.responses)):
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise ValueError(
                    f"{name}: must be a sequence of texts; for token ids there is Grid"
                )
        for name, values in (("ended", self.ended), ("end_tokens", self.end_tokens)):
            if values is not None and len(values) != len(self.responses):
                raise ValueError(
                    f"{name}: give one for each of the {len(self.responses)} responses, "
                    f"got {len(values)}"
                )

    def tokenise(self, tokenizer: PreTrainedTokenizerBase, *, train_on_eos: bool = True) -> Grid:
        """Return the grid of token ids.

        A response has the tokens that it has behind the prompts, so that both decode to their text;
        see ``models.tokens.TextEncoder``.

        Args:
            tokenizer: the student's tokenizer; no special tokens are added to what is written.
            train_on_eos: append to responses that ended by themselves the token that ended them. If
                it is not known, it is the one with which the chat template ends a turn, behind
                prompts that the template wrote, and else the end-of-sequence token.

        Raises:
            ValueError: the tokenizer has no token that ends a response.
        """
        encoder = TextEncoder(tokenizer)
        prompts = [encoder.encode_written(prompt) for prompt in self.prompts]
        end_tokens = self.end_tokens or [""] * len(self.responses)
        return Grid(
            prompt_ids=[prompt.ids for prompt in prompts],
            response_ids=[
                encoder.encode_response(prompts, response)
                + encoder.end_ids(prompts[0], ended and train_on_eos, end_token)
                for response, ended, end_token in zip(
                    self.responses, self.ended, end_tokens, strict=True
                )
            ],
        )
