"""Settings of the engines. Loads none of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sami_pipeline.engines.kinds import engine_kinds
from sami_pipeline.errors import first_fault, one_line
from sami_pipeline.models.devices import DESCRIPTION, Device

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy and torch both take."""
Tokens = Annotated[int, Field(gt=0, le=2**22)]
BatchSize = Annotated[int, Field(gt=0, le=2**16)]

_KEY_NAME = re.compile(
    r"(^|[_-])(api[_-]?key|key|token|secret|password|authorization)$", re.IGNORECASE
)


def _without_keys(value: dict[str, Any], remedy: str) -> dict[str, Any]:
    """Return settings that hold no key: parameters are logged, recorded and shown."""
    if keys := sorted(name for name in value if _KEY_NAME.search(name)):
        raise ValueError(f"{keys[0]} would be written into the run's record; {remedy}")
    return value


class Settings(BaseModel):
    """What every group of parameters keeps: known fields, finite numbers, nothing guessed at.

    Strict: ``yes`` and ``on`` are true in YAML, and true is not 1; "8" in quotes is not 8.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _lists_may_be_short(cls, value: Any, info: ValidationInfo) -> Any:
        return listed(value, cls.model_fields[info.field_name].annotation)


class OpenSettings(Settings):
    """Settings with a further group for each thing that others register, such as a baseline.

    A group that is not given has its defaults, where it has some.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def further_groups(cls) -> Mapping[str, type[BaseModel]]:
        """Return the model of each further group, by its name."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _further_groups_are_known(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {
            name: model
            for name, model in cls.further_groups().items()
            if name not in cls.model_fields
        }
        for name in value:
            if name not in cls.model_fields and name not in known:
                raise ValueError(
                    f"{one_line(str(name))}: is no field that is known here; correct or remove it"
                )
        found = dict(value)
        for name, model in known.items():
            try:
                found[name] = model.model_validate(value.get(name, {}))
            except ValidationError as error:
                if name in value:
                    raise ValueError(f"{name}.{first_fault(error)}") from error
        return found


def listed(value: Any, annotation: Any) -> Any:
    """Return a list, also for a text such as ``base+sami``: lists are short on the command line.

    Args:
        value: of a parameter.
        annotation: what the parameter admits; a text for what may be one stays as it is, and a list
            becomes a tuple where it is to be one, which YAML does not have.
    """
    admitted = _list_of(annotation)
    if admitted is None:
        return value
    kind, of_items = admitted
    if isinstance(value, str) and str not in _kinds(annotation):
        items = [item.strip() for item in value.split("+")]
        if not all(items):
            raise ValueError(f"must be a list, such as [a, b] or a+b, got {value!r:.40}")
        value = [yaml.safe_load(item) for item in items] if {int, float} & of_items else items
    return kind(value) if isinstance(value, list) else value


def with_lists(values: Any, model: type) -> Any:
    """Return the fields of a class that is no ``Settings``, with ``listed`` values at any depth.

    Args:
        values: a mapping; anything else stays as it is.
        model: a dataclass or model with annotated fields.
    """
    if not isinstance(values, Mapping):
        return values
    read = dict(values)
    for name, annotation in get_type_hints(model).items():
        if name in read:
            try:
                read[name] = listed(read[name], annotation)
                for kind in _kinds(annotation):
                    if isinstance(kind, type) and kind.__module__ == model.__module__:
                        read[name] = with_lists(read[name], kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    return read


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation such as ``PositiveInt | None`` admits."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    return {annotation} if get_origin(annotation) is None else set()


def _list_of(annotation: Any) -> tuple[type, set[Any]] | None:
    """Return tuple or list and the types of its items, or None where neither is admitted."""
    if get_origin(annotation) is Annotated:
        return _list_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        found = (_list_of(part) for part in get_args(annotation))
        return next((each for each in found if each is not None), None)
    if (kind := get_origin(annotation)) in (tuple, list):
        parts = [_kinds(part) for part in get_args(annotation) if part is not ...]
        return kind, set().union(*parts)
    return None


class TransformersParameters(Settings):
    """Settings of the transformers engine."""

    device: Device = Field("auto", description=DESCRIPTION)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the weights; auto takes bfloat16 where the hardware has it."
    )
    batch_size: BatchSize = Field(
        64, description="Responses written together; more is faster and takes more memory."
    )
    lanes: PositiveInt = Field(
        2,
        description="On a CPU so many threads write a part of the batch each, none waiting for "
        "another, with their share of the cores; a GPU has one.",
    )
    kept_gib: NonNegativeFloat = Field(
        1.0,
        description="Memory for keys and values of responses that have ended, in GiB, while others "
        "wait or where a further turn is asked: a prompt that begins alike goes on from there "
        "instead of reading it all again.",
    )


class VllmParameters(Settings):
    """Settings of the vllm engine; most have vLLM's own names.

    vLLM runs in a separate process, by ``python``, and imports nothing of this project there.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    python: str | None = Field(
        None,
        description="Interpreter of the environment that has vLLM; a relative path is relative to "
        "the project; null is that of .venv-vllm where `make vllm` made one, else this one.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto takes bfloat16 where the hardware multiplies it natively."
    )
    tensor_parallel_size: PositiveInt = Field(1, description="GPUs that share one model.")
    data_parallel_size: PositiveInt = Field(
        1, description="Copies of the model, each on its own GPUs, that share the prompts."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory for weights and key-value cache."
    )
    max_model_len: Tokens | None = Field(
        None, description="Most tokens of prompt and response together; null takes the model's."
    )
    enforce_eager: bool | None = Field(
        None, description="Neither compile nor capture graphs; null does so on a CPU alone."
    )
    enable_prefix_caching: bool = Field(
        True, description="Compute what prompts have in common at their start once."
    )
    distributed_executor_backend: Literal["mp", "ray"] | None = Field(
        None, description="How one model's GPUs are driven; null leaves it to vLLM."
    )
    request_seeds: bool = Field(
        True,
        description="Draw each sampled response from its own seed, so that a run which was "
        "killed draws the rest as it would have. False draws faster where top_p is below 1 and "
        "the GPU has FlashInfer, and otherwise each time.",
    )
    arguments: dict[str, Any] = Field({}, description="Further arguments of vllm.LLM.")
    environment: dict[str, str] = Field(
        {}, description="Environment variables of its process, such as VLLM_CPU_KVCACHE_SPACE."
    )

    @field_validator("arguments")
    @classmethod
    def _arguments_are_no_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        own = {*cls.model_fields, "model", "tokenizer", "skip_tokenizer_init", "generation_config"}
        # Weights are safetensors, and code is trusted by the model's name in models alone.
        own |= {"load_format", "trust_remote_code", "hf_token"}
        if given := sorted(own & set(value)):
            raise ValueError(f"{', '.join(given)} can't be given here; the engine sets it")
        return value

    @field_validator("environment")
    @classmethod
    def _environment_holds_no_keys(cls, value: dict[str, str]) -> dict[str, str]:
        return _without_keys(value, "set it in the environment of the run, which vLLM inherits")


# What the openai engine sends itself.
_LONGEST_ADDRESS = 2000
_REQUEST_FIELDS = {
    "model", "messages", "prompt", "n", "stream", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "stop", "seed", "response_format", "structured_outputs",
    "guided_choice",
}  # fmt: skip


class OpenAIParameters(Settings):
    """Settings of the openai engine: an endpoint that speaks OpenAI's protocol, and its prices.

    The key is none of them: it comes from Kedro's credentials or the environment.
    """

    base_url: str = Field(description="Such as http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="The model's name at the endpoint.")
    credentials: str = Field(
        "openai", description="Group of conf/local/credentials.yml that holds api_key."
    )
    api_key_variable: str = Field(
        "OPENAI_API_KEY",
        description="Environment variable with the key, where the credentials hold none.",
    )
    concurrency: PositiveInt = Field(
        16, description="Requests under way at once, and the most that a kill can lose."
    )
    timeout: PositiveFloat = Field(
        600.0, description="Seconds to wait for a connection, or for the next byte of an answer."
    )
    answer_timeout: PositiveFloat = Field(
        1800.0,
        description="Seconds that one answer may take in all, however its bytes drip in; one that "
        "takes longer has failed and is not asked again in this run.",
    )
    max_missing: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of what is asked at a time (the training responses, the judgements) "
        "that may end without a usable answer. More end the run; the next one asks for them again.",
    )
    max_retries: NonNegativeInt = Field(
        10,
        description="Of one request, after 408, 409, 429, 5xx, a lost connection, a timeout or an "
        "unusable body; ten take about a minute unless Retry-After says more.",
    )
    choices: Literal["json_schema", "structured_outputs", "guided_choice", "text"] = Field(
        "json_schema",
        description="How a response is kept to sampling.choices: OpenAI's response_format, vLLM's "
        "fields (the latter of old versions), or not at all. A response that is none of the "
        "choices has failed.",
    )
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the endpoint calls the token limit of a chat response."
    )
    leave_out: tuple[Literal["seed", "temperature", "top_p", "stop"], ...] = Field(
        (),
        description="Request fields that the endpoint refuses. Stop strings are cut off here then; "
        "without a seed sampled responses are drawn again in every run that has not stored them.",
    )
    extra: dict[str, Any] = Field(
        {},
        description="Further fields of every request's body, such as vLLM's "
        "{chat_template_kwargs: {enable_thinking: false}}.",
    )
    keep_thinking: bool = Field(
        False,
        description="Take what a model thinks before it responds (<think>…</think>) as a part of "
        "its response; False keeps it apart.",
    )
    prompt_price: NonNegativeFloat | None = Field(
        None, description="Per million prompt tokens, in any currency."
    )
    completion_price: NonNegativeFloat | None = Field(
        None, description="Per million completion tokens, in the same currency."
    )

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port or the brackets of an IPv6 address
            is_one = False
        if not is_one or not value.isprintable() or " " in value or len(value) > _LONGEST_ADDRESS:
            raise ValueError("must be an address such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no key; put it into conf/local/credentials.yml")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> OpenAIParameters:
        if own := sorted(_REQUEST_FIELDS & set(self.extra)):
            raise ValueError(f"extra: {', '.join(own)} can't be given here; the engine sets it")
        _without_keys(self.extra, "put it into conf/local/credentials.yml")
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("prompt_price, completion_price: give both or none")
        return self


class EngineParameters(OpenSettings):
    """Which engine generates, and the settings of each kind; those of the others are not read."""

    kind: str = Field(
        "transformers",
        description="What generates.",
        json_schema_extra=lambda schema: schema.update(enum=list(engine_kinds())),
    )
    transformers: TransformersParameters = TransformersParameters()
    vllm: VllmParameters = VllmParameters()
    openai: OpenAIParameters | None = None

    @classmethod
    def further_groups(cls) -> dict[str, type[BaseModel]]:
        """Return the settings of engines that have no field here, by kind."""
        return {name: kind.settings for name, kind in engine_kinds().items()}

    @property
    def settings(self) -> Any:
        """The settings of the chosen kind."""
        return getattr(self, self.kind, None)

    @property
    def asks_server(self) -> bool:
        """Whether it loads no model but asks a server that has one."""
        return engine_kinds()[self.kind].asks_server

    @property
    def served_model(self) -> str:
        """What the server calls its model; "" for an engine that loads one."""
        return self.settings.model if self.asks_server else ""

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, value: str) -> str:
        if value not in engine_kinds():
            known = ", ".join(engine_kinds())
            raise ValueError(f"{one_line(value)[:60]!r} is no engine; known: {known}")
        return value

    @model_validator(mode="after")
    def _settings_are_given(self) -> EngineParameters:
        if self.settings is None:
            needed = [
                name
                for name, field in engine_kinds()[self.kind].settings.model_fields.items()
                if field.is_required()
            ]
            raise ValueError(f"{self.kind}: {' and '.join(needed)} are missing")
        return self
