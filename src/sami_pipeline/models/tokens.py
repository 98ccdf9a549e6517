"""Between text and token ids: prompts, responses and what ends them, for every reader alike.

Three things go wrong where texts are simply given to a tokenizer:

* A response that is tokenised alone does not have the tokens that it has behind its prompt.
  SentencePiece puts a blank before what it takes for the beginning of a text, so that ``The``
  becomes ``▁The``.
* What somebody wrote may hold a control token's name, such as ``<|im_end|>``, and would end the
  turn that it stands in.
* The tokenizer's end-of-sequence token is often not the token with which the model ends its turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import ChatParameters, Prompt, render_messages
from sami_pipeline.models.thinking import MARK_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a part is read behind where it can't be read behind its own beginning. Several, since a
# tokenizer may join one of them with what follows.
_SENTINELS = ("\n", ":", "a", "0")
# Tokens before a part that it is decoded with; more change nothing.
_CONTEXT = 16
_PROBE = "PROBE"
# Unicode's noncharacters, of which no text can make use.
_CUTS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a model reads it.

    Attributes:
        text: what stands before the response, control tokens written out.
        ids: its tokens.
        control_strings: names of control tokens that were written by somebody and encoded as text.
        tail: the end of the text, from its last control token or such a name on.
        tail_ids: the tokens of the tail.
        chat: whether it was rendered by a chat template.
    """

    text: str
    ids: list[int]
    control_strings: int = 0
    tail: str = ""
    tail_ids: list[int] = field(default_factory=list)
    chat: bool = False


class TextEncoder:
    """Encodes prompts and responses, and reads responses, with one tokenizer.

    Args:
        tokenizer: the model's.
        chat: variables of the chat template.
        ends: tokens that end a response of the model; see ``end_token_ids``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat: ChatParameters | None = None,
        ends: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.chat = chat or ChatParameters()
        self.ends = frozenset(ends)

    def render(self, prompt: Prompt) -> str:
        """Return the exact text before the response, control tokens written out."""
        return prompt.render(self.tokenizer, self.chat)

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return the tokens of a prompt.

        Control tokens are those of the chat template, or of the plain prompt's own template. Names
        of control tokens in what users and models wrote are encoded as text: each is cut behind its
        first character, and the pieces are encoded one behind the other.
        """
        texts = [content for _, content in prompt.messages] or [prompt.text]
        cut = next(each for each in _CUTS if not any(each in text for text in texts))
        marked = prompt.map_written(lambda text: cut.join(self._pieces(text)))
        pieces = marked.render(self.tokenizer, self.chat).split(cut)
        return self._joined(pieces, chat=bool(prompt.messages))

    def encode_written(self, text: str) -> EncodedPrompt:
        """Return the tokens of a rendered prompt, in which all control tokens are meant."""
        return self._joined([text], chat=self._ends_as_a_chat(text))

    def encode_response(self, prompts: Sequence[EncodedPrompt], response: str) -> list[int]:
        """Return the tokens that a response has behind each of the prompts.

        ``decode(prompt + response)`` is then the text of both. Names of control tokens in it are
        encoded as text.

        Args:
            prompts: that it may follow: one query under several constitutions.
            response: the text.
        """
        found = [self._behind(prompt, response) for prompt in prompts]
        for ids in found:
            if all(self.read(prompt.ids, ids) == response for prompt in prompts):
                return ids
        return found[0]

    def read(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text of tokens behind others, special tokens left out.

        A blank with which it begins is kept, which would be lost if it were decoded alone.
        """
        return self._text(before, [token for token in ids if token not in self._special_ids])

    def read_with_marks(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return as ``read`` does, but with special tokens that part thinking from a response."""
        left_out = self._special_ids - self._mark_ids
        return self._text(before, [token for token in ids if token not in left_out])

    def end_of(self, prompt: Sequence[int]) -> str:
        """Return the last words of a prompt, control tokens written out."""
        return self._decode(prompt[-_CONTEXT:])

    def end_ids(self, prompt: EncodedPrompt, ended: bool, end_token: str = "") -> list[int]:
        """Return the token that is to end a response to a prompt, or nothing.

        Args:
            prompt: that the response follows.
            ended: whether it ended by itself; one that was cut off has no end.
            end_token: what ended it when it was generated, if that is known. It counts where the
                model ends its own responses with it; else the token does with which the chat
                template ends a turn, and behind a plain prompt the end-of-sequence token.

        Raises:
            InputError: the tokenizer has none.
        """
        if not ended:
            return []
        known = self.tokenizer.get_vocab().get(end_token) if end_token else None
        if known not in self._own_ends:
            known = self.turn_end if prompt.chat else None
        end = self.tokenizer.eos_token_id if known is None else known
        if end is None:
            raise InputError(
                "tokenizer: has no end-of-sequence token, so the end of a response can't be "
                "trained; set its eos_token, or train_on_eos to false"
            )
        return [end]

    @cached_property
    def turn_end(self) -> int | None:
        """The control token with which the chat template ends a turn of the assistant."""
        return _turn_end(self.tokenizer, self.chat, self.ends)

    @cached_property
    def _own_ends(self) -> frozenset[int]:
        """Tokens that may be trained as an end: padding may not, which is no end."""
        own = (self.ends | {self.turn_end}) - {self.tokenizer.pad_token_id}
        return (own | {self.tokenizer.eos_token_id}) - {None}

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        return frozenset(special | set(self.tokenizer.all_special_ids))

    @cached_property
    def _mark_ids(self) -> frozenset[int]:
        added = self.tokenizer.get_added_vocab()
        return frozenset(added[mark] for mark in MARK_TOKENS if mark in added)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches the names of control tokens.

        They are the special tokens, and the added ones that the chat template writes or that part
        thinking from responses. Other added tokens, such as runs of blanks, are text.
        """
        written = str(self.tokenizer.chat_template or "")
        names = {*self.tokenizer.all_special_tokens} | {
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.special or token.content in written or token.content in MARK_TOKENS
        }
        names = {name for name in names if len(name) > 1 and not name.isspace()}
        longest_first = sorted(names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _generation_prompt(self) -> str:
        """What the chat template writes before a response."""
        try:
            return render_messages(self.tokenizer, (("user", _PROBE),), self.chat).rpartition(
                _PROBE
            )[2]
        except InputError:
            return ""

    def _ends_as_a_chat(self, text: str) -> bool:
        opening = self._generation_prompt
        return bool(opening.strip()) and text.endswith(opening)

    def _pieces(self, text: str) -> Iterator[str]:
        """Yield a text cut behind the first character of each name of a control token."""
        done = position = 0
        while match := self._control.search(text, position):
            position = match.start() + 1
            yield text[done:position]
            done = position
        yield text[done:]

    def _joined(self, pieces: Sequence[str], *, chat: bool) -> EncodedPrompt:
        whole = EncodedPrompt("", [], chat=chat)
        for number, piece in enumerate(pieces):
            ids = self._in_place(whole, piece) if number else self._encode(piece)
            tail, tail_ids = self._tail(piece, ids)
            whole = EncodedPrompt(
                whole.text + piece, whole.ids + ids, number, tail, tail_ids, chat=chat
            )
        return whole

    def _tail(self, piece: str, ids: list[int]) -> tuple[str, list[int]]:
        """Return a piece from its last control token on: what goes before changes nothing there."""
        if found := list(self._control.finditer(piece)):
            tail = piece[found[-1].start() :]
            tail_ids = self._encode(tail)
            if tail_ids and ids[-len(tail_ids) :] == tail_ids:
                return tail, tail_ids
        return piece, ids

    def _behind(self, prompt: EncodedPrompt, response: str) -> list[int]:
        whole = prompt
        for piece in self._pieces(response):
            ids = self._in_place(whole, piece)
            whole = EncodedPrompt(whole.text + piece, whole.ids + ids, 0, piece, ids)
        return whole.ids[len(prompt.ids) :]

    def _in_place(self, before: EncodedPrompt, part: str) -> list[int]:
        """Return the tokens that a part has where it stands."""
        if not part:
            return []
        # As the tokenizer reads both together, if the part changes nothing in what goes before.
        joint = self._encode(before.tail + part)
        keeps = joint[: len(before.tail_ids)] == before.tail_ids
        together = joint[len(before.tail_ids) :] if keeps and before.tail_ids else []
        if together:
            text = self._text(before.ids, together)
            # Behind a control token some tokenizers begin a text, and with it a blank. That is how
            # the model knows it.
            if text == part or (text == " " + part and not part[0].isspace()):
                return together
        alone = self._encode(part)
        if self._text(before.ids, alone) == part:
            return alone
        behind = [ids for each in _SENTINELS if (ids := self._behind_sentinel(each, part))]
        for ids in behind:
            if self._text(before.ids, ids) == part:
                return ids
        # No tokens say exactly this, such as where the tokenizer normalises what it reads.
        return together or (behind[0] if behind else alone)

    def _behind_sentinel(self, sentinel: str, part: str) -> list[int] | None:
        first, both = self._encode(sentinel), self._encode(sentinel + part)
        return both[len(first) :] if both[: len(first)] == first else None

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _text(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return what tokens add to the text of those before them."""
        context = list(before[-_CONTEXT:])
        start, whole = self._decode(context), self._decode([*context, *ids])
        if whole.startswith(start):
            return whole[len(start) :]
        # Bytes of a character that are not all there took the byte before them along.
        return self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def end_token_ids(
    model_folder: Path, tokenizer: PreTrainedTokenizerBase, chat: ChatParameters | None = None
) -> frozenset[int]:
    """Return the tokens that end a response of a model.

    They are those of the folder's settings, the tokenizer's end of sequence and padding, and the
    token with which the chat template ends a turn. Nothing else of the folder's own generation
    settings is heeded: a repetition penalty, say, would change what temperature 0 means.
    """
    ends: int | list[int] | None = None
    for name in ("generation_config.json", "config.json"):
        path = model_folder / name
        if ends is None and path.is_file():
            ends = json.loads(path.read_text("utf-8")).get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    own = (*listed, tokenizer.pad_token_id, tokenizer.eos_token_id)
    known = frozenset(token for token in own if token is not None)
    turn_end = _turn_end(tokenizer, chat or ChatParameters(), known)
    return known if turn_end is None else known | {turn_end}


def _turn_end(
    tokenizer: PreTrainedTokenizerBase, chat: ChatParameters, ends: frozenset[int]
) -> int | None:
    """Return the first control token behind a turn of the assistant.

    Where a template writes none, the next turn's first token ends this one, if the model is known
    to end its responses with it (GLM 4).
    """
    if not tokenizer.chat_template:
        return None
    turn = (("user", "Hello"), ("assistant", _PROBE))
    control = set(tokenizer.added_tokens_decoder)
    for messages, wanted in ((turn, control), ((*turn, ("user", "Hello")), control & ends)):
        try:
            text = render_messages(tokenizer, messages, chat, open_end=True)
        except InputError:
            continue  # a template may refuse this order of turns
        behind = text.rpartition(_PROBE)[2] if _PROBE in text else ""
        for token in tokenizer(behind, add_special_tokens=False)["input_ids"]:
            if token in wanted and tokenizer.decode([token]).strip():
                return token
    return None
