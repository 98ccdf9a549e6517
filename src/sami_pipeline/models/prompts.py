"""Prompts: chat or plain text, built from template files, rendered by a model's tokenizer."""

from __future__ import annotations

import datetime
import json
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sami_pipeline.errors import InputError, first_fault, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Takes the place of transformers' function, which knows today; since 5.24 templates are given data
# alone and no function.
_DATE_CODES = "sami_pipeline_date_codes"
_STRFTIME = (
    "{%- macro strftime_now(format) -%}{%- set written = namespace(text=format) -%}"
    "{%- for code, value in " + _DATE_CODES + " -%}"
    "{%- set written.text = written.text | replace(code, value) -%}{%- endfor -%}"
    "{{- written.text -}}{%- endmacro -%}"
)
# What is given to a chat template besides its variables.
_NOT_VARIABLES = frozenset(
    {
        "conversation", "messages", "tools", "documents", "chat_template", "tokenize",
        "add_generation_prompt", "continue_final_message", "sanitize_control_tokens", "padding",
        "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now", _DATE_CODES,
    }
)  # fmt: skip


class ChatParameters(BaseModel):
    """How chat templates are rendered, and what of a model's text is its response."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    date: datetime.date = Field(
        datetime.date(2024, 7, 26),
        description="The date that a chat template writes as today's (Llama 3, SmolLM3, Granite), "
        "so that a run gives the same on any day; the default is what Llama's templates write "
        "where they know no date.",
    )
    variables: dict[str, Any] = Field(
        {},
        description="Variables of the chat template, such as {enable_thinking: false}; a template "
        "passes over those that it does not know.",
    )
    keep_thinking: bool = Field(
        False,
        description="Take what a model thinks before it responds (<think>…</think>) as a part of "
        "its response, which is trained, checked and judged; False keeps it apart.",
    )

    @field_validator("variables")
    @classmethod
    def _variables_are_the_templates_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        if given := sorted(_NOT_VARIABLES & set(value)):
            remedy = "give chat.date" if given[0] == "strftime_now" else "leave it out"
            raise ValueError(f"{given[0]} is set by the pipeline; {remedy}")
        return value

    @property
    def identity(self) -> str:
        """What an engine's identity says of them: nothing where all are the defaults."""
        return f" {json.dumps(self.given(), sort_keys=True)}" if self.given() else ""

    def given(self) -> dict[str, Any]:
        """Return what is not as by default, as JSON has it."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def dated(self, template: str) -> tuple[str, dict[str, Any]]:
        """Return a chat template that knows the date alone, and the variables that it needs."""
        if "strftime_now" not in template:
            return template, {}
        day = datetime.datetime.combine(self.date, datetime.time())
        codes = [f"%{sign}{letter}" for letter in string.ascii_letters for sign in ("-", "")]
        return _STRFTIME + template, {_DATE_CODES: [(code, day.strftime(code)) for code in codes]}


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: chat messages for an instruct model, or plain text to continue.

    Attributes:
        messages: (role, content) pairs; empty for a plain prompt. A final message of the assistant
            is what the response goes on with; a server may not be able to go on with one.
        text: the plain prompt; empty for a chat prompt.
        quoted: (start, end) of the parts of a plain prompt that are queries, answers and
            constitutions and look as if they could name a control token; the rest is the
            template's. All content of messages is such text.
    """

    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""
    quoted: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> str:
        """Return the prompt as one line of JSON, the form it has in tables."""
        if self.text:
            quoted = {"quoted": self.quoted} if self.quoted else {}
            return json.dumps({"text": self.text} | quoted, ensure_ascii=False)
        messages = [{"role": role, "content": content} for role, content in self.messages]
        return json.dumps({"messages": messages}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Prompt:
        """Return the prompt that ``to_json`` wrote."""
        value = json.loads(line)
        messages = tuple((m["role"], m["content"]) for m in value.get("messages", ()))
        quoted = tuple((start, end) for start, end in value.get("quoted", ()))
        return cls(messages=messages, text=value.get("text", ""), quoted=quoted)

    def map_written(self, change: Callable[[str], str]) -> Prompt:
        """Return the prompt with its queries, answers and constitutions changed."""
        messages = tuple((role, change(content)) for role, content in self.messages)
        parts, done = [], 0
        for start, end in self.quoted:
            parts += [self.text[done:start], change(self.text[start:end])]
            done = end
        return replace(self, messages=messages, text="".join((*parts, self.text[done:])), quoted=())

    def render(self, tokenizer: PreTrainedTokenizerBase, chat: ChatParameters | None = None) -> str:
        """Return the exact text before the response, special tokens written out.

        ``models.tokens.TextEncoder`` makes token ids of it; in the text alone a control token that
        the template writes can't be told from one that a query names.

        Raises:
            InputError: a chat prompt for a tokenizer without a chat template, or with one that
                fails.
        """
        if not self.text:
            return render_messages(tokenizer, self.messages, chat or ChatParameters())
        first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
        begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
        return (tokenizer.bos_token if begins else "") + self.text


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[tuple[str, str]],
    chat: ChatParameters,
    *,
    open_end: bool = False,
) -> str:
    """Return a conversation as the tokenizer's chat template writes it.

    Args:
        tokenizer: has the template.
        messages: (role, content) pairs.
        chat: date and variables of the template.
        open_end: neither begin a response after the last message nor go on with it.

    Raises:
        InputError: there is no template, or it fails.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; "
            "choose a plain prompt template for this model"
        )
    try:
        return _templated(tokenizer, messages, chat, open_end)
    # A template is a program: it may ask of a value what it can't do.
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise InputError(
            f"{tokenizer.name_or_path}: chat_template: fails with {type(error).__name__} "
            f"({one_line(str(error))}); mend it, or choose a plain prompt template"
        ) from error


_ASKED = "Which of the 7351 is it?"


def check_template(tokenizer: PreTrainedTokenizerBase, chat: ChatParameters) -> None:
    """Refuse a chat template that can't be used.

    Raises:
        InputError: it fails, or leaves out what the user says.
    """
    if _ASKED not in render_messages(tokenizer, (("user", _ASKED),), chat):
        raise InputError(
            f"{tokenizer.name_or_path}: chat_template: leaves out what the user says; correct it, "
            "or choose a plain prompt template"
        )


def _templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[tuple[str, str]],
    chat: ChatParameters,
    open_end: bool,
) -> str:
    """Return a conversation as the chat template writes it.

    Where the template has no system role (Gemma's, Mistral's first ones) or leaves it out, the
    system text stands in front of the user's first, as their makers advise.
    """
    continued = messages[-1][0] == "assistant" and not open_end
    template, date_codes = chat.dated(tokenizer.get_chat_template())

    def written(given: Sequence[tuple[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in given],
            add_generation_prompt=not continued and not open_end,
            continue_final_message=continued,
            chat_template=template,
            tokenize=False,
            **date_codes,
            **chat.variables,
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
    answer_begins: dict[str, dict[Literal["principle", "antithesis"], str]] = Field(
        {},
        description="How a response to a plain prompt begins, by the principle that its "
        "constitution takes a stance on; the model goes on from there.",
    )

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
        if self.kind == "chat" and self.answer_begins:
            raise ValueError("answer_begins: only a plain template has it")
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
        stances: Sequence[tuple[str, str]] = (),
    ) -> Prompt:
        """Return the prompt for the last of ``queries``, after the earlier turns.

        Args:
            queries: the user's turns so far, at least one.
            answers: the model's answers to all turns but the last.
            constitution: formatted statements, or None to ask without any.
            stances: the constitution's (principle, "principle" | "antithesis") pairs; they choose
                among ``answer_begins``.
        """
        if len(answers) != len(queries) - 1:
            raise ValueError(f"{len(queries)} queries need {len(queries) - 1} earlier answers")
        if self.kind == "chat":
            messages = [("system", self.system)] if self.system else []
            for query, answer in zip(queries, answers, strict=False):
                messages += [("user", self._turn(query, constitution)), ("assistant", answer)]
            return Prompt(messages=(*messages, ("user", self._turn(queries[-1], constitution))))
        parts = _Parts(self.preamble)
        for number, query in enumerate(queries):
            self._add_turn(parts, query, constitution)
            if number < len(answers):
                parts.add(answers[number], quoted=True)
                parts.add(self.answer_end)
        for principle, begins in self.answer_begins.items():
            for name, stance in stances:
                if name == principle:
                    parts.add(begins.get(stance, ""))
        return Prompt(text=parts.text, quoted=tuple(parts.quoted))

    def _turn(self, query: str, constitution: str | None) -> str:
        parts = _Parts()
        self._add_turn(parts, query, constitution)
        return parts.text

    def _add_turn(self, parts: _Parts, query: str, constitution: str | None) -> None:
        turn = self.turn_without_constitution if constitution is None else self.turn
        values = {"query": query, "constitution": constitution or ""}
        for literal, name, _, _ in Formatter().parse(turn):
            parts.add(literal)
            if name is not None:
                parts.add(values[name], quoted=True)


class _Parts:
    """A text that grows, and where in it is what others wrote."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.quoted: list[tuple[int, int]] = []

    def add(self, part: str, *, quoted: bool = False) -> None:
        if quoted and not _BRACKETS.isdisjoint(part):
            self.quoted.append((len(self.text), len(self.text) + len(part)))
        self.text += part


# Names of control tokens are written in brackets of some kind.
_BRACKETS = frozenset("<>[]{}|\uff5c")
