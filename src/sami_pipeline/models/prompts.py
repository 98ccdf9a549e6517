"""Prompts: chat or plain text, built from template files, rendered by a model's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sami_pipeline.errors import InputError, first_fault, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: chat messages for an instruct model, or plain text to continue.

    Attributes:
        messages: (role, content) pairs; empty for a plain prompt. A final message of the assistant
            is what the response goes on with; a server may not be able to go on with one.
        text: the plain prompt; empty for a chat prompt.
    """

    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""

    def to_json(self) -> str:
        """Return the prompt as one line of JSON, the form it has in tables."""
        if self.text:
            return json.dumps({"text": self.text}, ensure_ascii=False)
        messages = [{"role": role, "content": content} for role, content in self.messages]
        return json.dumps({"messages": messages}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Prompt:
        """Return the prompt that ``to_json`` wrote."""
        value = json.loads(line)
        messages = tuple((m["role"], m["content"]) for m in value.get("messages", ()))
        return cls(messages=messages, text=value.get("text", ""))

    def render(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the exact text before the response, special tokens written out.

        It is meant to be tokenised with ``add_special_tokens=False``.

        Raises:
            InputError: a chat prompt for a tokenizer without a chat template, or with one that
                fails.
        """
        if self.text:
            first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
            begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
            return (tokenizer.bos_token if begins else "") + self.text
        if not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; "
                "choose a plain prompt template for this model"
            )
        try:
            return _templated(tokenizer, self.messages)
        # A template is a program: it may ask of a value what it can't do.
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(
                f"{tokenizer.name_or_path}: chat_template: fails with {type(error).__name__} "
                f"({one_line(str(error))}); mend it, or choose a plain prompt template"
            ) from error


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]]) -> str:
    """Return a conversation as the chat template writes it.

    Where the template has no system role (Gemma's, Mistral's first ones) or leaves it out, the
    system text stands in front of the user's first, as their makers advise.
    """
    continued = messages[-1][0] == "assistant"

    def written(given: Sequence[tuple[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in given],
            add_generation_prompt=not continued,
            continue_final_message=continued,
            tokenize=False,
        )

    if messages[0][0] != "system" or len(messages) == 1 or messages[1][0] != "user":
        return written(messages)
    (_, system), (_, first), *rest = messages
    try:
        text = written(messages)
    except (TemplateError, TypeError, ValueError):
        text = ""
    if system.strip() in text and text:
        return text
    return written([("user", f"{system}\n\n{first}"), *rest])


def check_placeholders(text: str, known: Collection[str]) -> set[str]:
    """Return the names of a text's placeholders, which are plain names and nothing more.

    ``{query.__class__}`` would show the inside of the program, ``{query:>1000000000}`` fill the
    memory.

    Raises:
        ValueError: another placeholder, or braces that do not match.
    """
    names = " and ".join(f"{{{name}}}" for name in sorted(known, reverse=True))
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(
            f"only {names} are replaced, write other braces doubled ({error})"
        ) from None
    for _, name, specification, conversion in parts:
        if name is not None and (name not in known or specification or conversion):
            raise ValueError(
                f"only {names} are replaced, write other braces doubled ({{{name}}} is none)"
            )
    return {name for _, name, _, _ in parts if name is not None}


class PromptTemplate(BaseModel):
    """How a query and a constitution become a prompt; one YAML file each.

    In all texts ``{query}`` and ``{constitution}`` are replaced; write other braces doubled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["chat", "plain"]
    system: str | None = Field(None, description="System message of a chat prompt.")
    preamble: str = Field("", description="What a plain prompt begins with: a worked example.")
    turn: str = Field(description="One user turn under a constitution.")
    turn_without_constitution: str = Field("{query}", description="One user turn under none.")
    answer_end: str = Field("\n\n", description="What follows an earlier answer in a plain prompt.")
    stop: tuple[str, ...] = Field((), description="Strings that end a response.")

    @model_validator(mode="after")
    def _placeholders(self) -> PromptTemplate:
        for field, needed in (
            ("turn", ("{query}", "{constitution}")),
            ("turn_without_constitution", ("{query}",)),
        ):
            for placeholder in needed:
                if placeholder not in getattr(self, field):
                    raise ValueError(f"{field}: the placeholder {placeholder} is missing")
            known = ("query", "constitution") if field == "turn" else ("query",)
            try:
                check_placeholders(getattr(self, field), known)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
        if self.kind == "chat" and self.preamble:
            raise ValueError("preamble: only a plain template has one")
        if self.kind == "plain" and self.system is not None:
            raise ValueError("system: only a chat template has one")
        return self

    @classmethod
    def parse(cls, value: Any, name: str) -> PromptTemplate:
        """Return the template that a YAML file holds.

        Args:
            value: the parsed file.
            name: what the file is called in the catalog, for the message.

        Raises:
            InputError: one line naming the file and the field.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise InputError(f"prompt template {name}: {first_fault(error)}") from error

    def build(
        self,
        queries: Sequence[str],
        answers: Sequence[str] = (),
        constitution: str | None = None,
    ) -> Prompt:
        """Return the prompt for the last of ``queries``, after the earlier turns.

        Args:
            queries: the user's turns so far, at least one.
            answers: the model's answers to all turns but the last.
            constitution: formatted statements, or None to ask without any.
        """
        if len(answers) != len(queries) - 1:
            raise ValueError(f"{len(queries)} queries need {len(queries) - 1} earlier answers")
        turns = [self._turn(query, constitution) for query in queries]
        if self.kind == "chat":
            messages = [("system", self.system)] if self.system else []
            for turn, answer in zip(turns, answers, strict=False):
                messages += [("user", turn), ("assistant", answer)]
            return Prompt(messages=(*messages, ("user", turns[-1])))
        earlier = [t + a + self.answer_end for t, a in zip(turns, answers, strict=False)]
        return Prompt(text=self.preamble + "".join(earlier) + turns[-1])

    def _turn(self, query: str, constitution: str | None) -> str:
        if constitution is None:
            return self.turn_without_constitution.format(query=query)
        return self.turn.format(query=query, constitution=constitution)
