"""One model per parameter group; Kedro checks them before any node runs.

Loads neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.engines import EngineParameters, SamplingParameters
from sami_pipeline.engines.parameters import OpenSettings, Seed, Settings, Tokens, with_lists
from sami_pipeline.errors import one_line
from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.seeds import NO_SEED, share_training
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.models.checkpoints import ModelSource
from sami_pipeline.models.devices import DESCRIPTION, Device
from sami_pipeline.models.prompts import ChatParameters
from sami_pipeline.principles.constitutions import Contrast, TrainingContrast
from sami_pipeline.training.baselines.dpo import DpoParameters
from sami_pipeline.training.baselines.record import NoSettings
from sami_pipeline.training.baselines.registry import (
    SAMI,
    baselines,
    sami_models,
    trained_models,
)
from sami_pipeline.training.baselines.sft import SftParameters

Category = Literal[*MT_BENCH_CATEGORIES]
# The teacher that copies the solutions of the problems, instead of a stronger model.
WORKED_SOLUTIONS = "worked_solutions"
# The teacher that answers at the endpoint of generation.engine.openai.
HOSTED = "hosted"
# The models of iterations before the last are sami_iteration_1, sami_iteration_2, …
ITERATION_MODEL = "sami_iteration_"
ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


def _as_written(name: Any) -> Any:
    if type(name) in (int, float):
        raise ValueError(
            f"{name} was read as a number, which loses zeros; write it in quotes: '{name}'"
        )
    return name


def _name_of_a_folder(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith("."):
        raise ValueError(
            f"{one_line(name)[:60]!r} can't name a folder; use up to 100 letters, digits, . _ and "
            "-, beginning with a letter or digit"
        )
    return name


# A folder below each layer: no separators, no dot in front, nothing a shell or a system reads.
RunName = Annotated[
    str,
    BeforeValidator(_as_written),
    AfterValidator(_name_of_a_folder),
]


def _loads_models(engine: EngineParameters) -> EngineParameters:
    if engine.asks_server:
        raise ValueError(
            f"kind: {engine.kind} asks a server, which can't load models of this project; choose "
            "another"
        )
    return engine


# An engine for models under test and for those trained here.
LoadingEngine = Annotated[EngineParameters, AfterValidator(_loads_models)]


_Count = Annotated[int, Field(gt=0, le=1_000_000)]


def _refuse_resamples(value: Any) -> Any:
    if isinstance(value, Mapping) and "resamples" in value:
        raise ValueError(
            "resamples: is no parameter any more, since these intervals are no bootstrap; remove it"
        )
    return value


class HousekeepingParameters(Settings):
    """What a run takes from earlier ones, leaves and prints; they stand at the top level."""

    completions: Literal["take_up", "ask_again"] = Field(
        "take_up",
        description="Of texts that earlier code has asked for: take them up, or ask again.",
    )
    share_between_runs: bool = Field(
        True,
        description="Take over from other runs what they made from the same: model folders with "
        "the tables of their training, as hard links, and the texts of the same requests.",
    )
    keep_training_states: bool = Field(
        False,
        description="Keep the last state of a training whose results are saved: weights and what "
        "the optimiser keeps, with AdamW three times the model.",
    )
    print_tables: bool = Field(
        False,
        description="Print the tables of results at a run's end too; they are in the report.",
    )


class RunParameters(HousekeepingParameters):
    """Names of runs, which become names of folders, and what belongs to a run as a whole."""

    run_name: RunName = Field(description="Part of every path that a run writes.")
    seeds: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Short for the parameter seeds of every experiment: --params seeds=3.",
    )
    completions_of: RunName | None = Field(
        None, description="The run whose stored completions are taken up; null takes its own."
    )


class ImportedModel(NamedTuple):
    """A model that a pipeline takes from outside, and how it is opened."""

    name: str
    source: ModelSource
    trust_remote_code: bool
    chat: ChatParameters


class ModelsParameters(Settings):
    """The models of an experiment. They decide the graph."""

    sources: dict[ModelName, ModelSource] = Field(
        description="Models that come from outside, by name."
    )
    student: ModelName = Field(description="The model that SAMI trains.")
    teacher: ModelName = Field(
        description="The model that writes the training responses; hosted is the one at "
        "generation.engine.openai, and in the math experiment worked_solutions takes the problems' "
        "own."
    )
    under_test: tuple[ModelName, ...] = Field(
        min_length=1, description="Models that answer the benchmark."
    )
    baseline: ModelName = Field(description="The model that the others are compared with.")
    trust_remote_code: tuple[ModelName, ...] = Field(
        (),
        description="Models of sources whose own Python code may run here with all rights of this "
        "process, where the folder brings some (auto_map); read it first.",
    )
    chat: ChatParameters = ChatParameters()

    @model_validator(mode="after")
    def _check_names(self) -> ModelsParameters:
        for name in self.sources:
            special = (*trained_models(), WORKED_SOLUTIONS, HOSTED)
            replicate = re.fullmatch(rf"({'|'.join(trained_models())})_seed_\d+", name)
            if name in special or name.startswith(ITERATION_MODEL) or replicate:
                raise ValueError(f"sources: {name!r} has a special meaning; choose another name")
        for name in self.trust_remote_code:
            if name not in self.sources:
                raise ValueError(
                    f"trust_remote_code: {name!r} has no source; known: {', '.join(self.sources)}"
                )
        if len(set(self.under_test)) < len(self.under_test):
            raise ValueError("under_test: names a model twice; remove one")
        for field in ("student", "teacher"):
            if field == "teacher" and self.teacher in (WORKED_SOLUTIONS, HOSTED):
                continue
            if getattr(self, field) not in self.sources:
                raise ValueError(
                    f"{field}: {getattr(self, field)!r} has no source; "
                    f"known: {', '.join(self.sources)}"
                )
            if getattr(self, field) in self.answer_files:
                raise ValueError(f"{field}: {getattr(self, field)!r} is a file of answers")
        if set(self.under_test) <= set(self.answer_files):
            raise ValueError("under_test: name a model besides files of answers")
        if not set(self.under_test) - {self.baseline}:
            raise ValueError("under_test: name a model besides the baseline to compare with it")
        if self.baseline not in self.under_test:
            raise ValueError(f"baseline: {self.baseline!r} must be one of under_test")
        return self

    @property
    def answer_files(self) -> dict[str, str]:
        """The files of answers that stand for a model under test, by its name."""
        sources = self.sources.items()
        return {name: source.location for name, source in sources if source.kind == "answers"}

    @property
    def tested_checkpoints(self) -> list[str]:
        """The models under test that are checkpoints, and no files of answers."""
        return [name for name in self.under_test if name not in self.answer_files]

    @property
    def lineage(self) -> dict[str, str]:
        """The trained model that a trained model goes on with, by its name."""
        return {name: known.starts_from for name, known in baselines().items() if known.starts_from}

    def pairs(self) -> list[tuple[str, str]]:
        """Return (model, opponent) for every pair under test: against the baseline, then the later.

        With base, sami and dpo under test: sami and dpo against base, and sami against dpo.
        """
        others = [name for name in self.under_test if name != self.baseline]
        pairs = [(name, self.baseline) for name in others]
        return pairs + [(name, later) for i, name in enumerate(others) for later in others[i + 1 :]]


class QueryTableParameters(Settings):
    """How queries are read from a table of the catalog.

    The text is cut first (``between``, then ``before``), then limited, then lengthened.
    """

    query: str = Field(
        description="Column that holds the query; with dots a place within it, such as "
        "conversation.0.content."
    )
    category: Category | None = Field(
        None, description="Whose queries they are; null is the table's name."
    )
    where: dict[str, Any] = Field({}, description="Keep rows whose columns have these values.")
    first_rows: PositiveInt | None = Field(
        None, description="Look at the first rows of the table only; null looks at all."
    )
    between: tuple[str, str] | None = Field(
        None,
        description="Take the text between two markers, the first of each; rows without both are "
        "left out.",
    )
    before: str | None = Field(
        None, description="Cut the text before a marker, where it holds one."
    )
    max_non_ascii: NonNegativeInt | None = Field(
        None, description="Leave out queries with more characters beyond ASCII; null keeps all."
    )
    prefix: str = Field("", description="Put before every query.")
    suffix: str = Field("", description="Put after every query.")
    at_most: _Count | None = Field(
        None,
        description="Draw up to so many; null draws queries.per_category and refuses fewer.",
    )


class QueriesParameters(Settings):
    """Where the training queries come from."""

    per_category: _Count = Field(40, description="Queries of each category.")
    templates: bool = Field(
        True,
        description="Write queries of categories without a table from the project's own templates; "
        "false leaves these categories without.",
    )
    seed: Seed = Field(0, description="Decides which queries are drawn.")
    tables: dict[ModelName, QueryTableParameters] = Field(
        {},
        description="Tables that replace a category's templates, by name: the catalog "
        "entry is query_table_<name>. Several tables may be of one category.",
    )

    @model_validator(mode="after")
    def _check_tables(self) -> QueriesParameters:
        for name, table in self.tables.items():
            if table.category is None and name not in MT_BENCH_CATEGORIES:
                raise ValueError(
                    f"tables.{name}.category: is missing; known: {', '.join(MT_BENCH_CATEGORIES)}"
                )
        if not (self.templates or self.tables):
            raise ValueError("templates: false needs tables; name some, or set it to true")
        return self

    def category_of(self, table: str) -> str:
        """Return whose queries a table holds."""
        return self.tables[table].category or table

    @property
    def most(self) -> dict[str, int]:
        """How many queries of each category there are at most."""
        written = set(MT_BENCH_CATEGORIES) - self.tabulated if self.templates else set()
        most = dict.fromkeys(sorted(written), self.per_category)
        for name, table in self.tables.items():
            category = self.category_of(name)
            most[category] = most.get(category, 0) + (table.at_most or self.per_category)
        return most

    @property
    def tabulated(self) -> set[str]:
        """The categories whose queries come from tables."""
        return {self.category_of(name) for name in self.tables}


class ConstitutionsParameters(Settings):
    """How contrasting constitutions are sampled."""

    n_constitutions: int = Field(2, ge=2, le=64, description="Constitutions per query.")
    contrast: TrainingContrast = Field(
        "sampled",
        description="What stands against the desired constitution: opposite takes every "
        "antithesis, sampled draws from all others. pairs draws pairs of different constitutions "
        "from all that there are (arXiv 2410.01704), so that a grid may differ in one principle.",
    )
    pairs_per_query: _Count = Field(
        2, description="Grids of each query with contrast: pairs; published is 2."
    )
    pairs_differ_in: str | None = Field(
        None,
        description="With contrast: pairs, a principle on which the two constitutions of a pair "
        "take different stances, published for math as the one that asks for steps; null draws "
        "from all pairs.",
    )
    seed: Seed = Field(0, description="Decides the contrasts and the order of the statements.")

    @model_validator(mode="after")
    def _check_contrast(self) -> ConstitutionsParameters:
        if self.pairs_differ_in is not None and self.contrast != "pairs":
            raise ValueError("pairs_differ_in: goes together with contrast: pairs")
        return self


class FiltersParameters(Settings):
    """Published filters of training responses (arXiv 2410.01704); each leaves out whole grids.

    Lengths are in characters. Responses that did not end are ``keep_truncated``'s business.
    """

    words: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="A grid with a response that holds one of these, such as [insert, is left out.",
    )
    minimum_characters: NonNegativeInt = Field(
        0, description="Of a grid's shortest response; published for math is 50."
    )
    minimum_length_ratio: float = Field(
        1.0, ge=1, description="Of a grid's longest response to its shortest; for math 3."
    )
    minimum_edit_distance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Levenshtein distance between the shortest response and the beginning of the "
        "longest, as a share of the shortest's length; published for math is 0.5.",
    )


class GenerationParameters(Settings):
    """How training responses are written."""

    engine: EngineParameters = EngineParameters()
    max_new_tokens: Tokens = Field(96, description="Limit of a response, in tokens.")
    temperature: NonNegativeFloat = Field(0.0, description="Of the responses; 0 is greedy.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling; 1 keeps the whole distribution."
    )
    keep_truncated: bool = Field(
        True, description="Use responses that reached max_new_tokens; False marks them unusable."
    )
    keep_degenerate: bool = Field(
        False, description="Use responses that mostly repeat themselves; False marks them."
    )
    filters: FiltersParameters = FiltersParameters()
    queries_per_category: _Count | None = Field(
        20,
        description="Of the ingested queries, how many of each category are answered; null "
        "answers all that there are.",
    )
    held_out_per_category: int = Field(
        4, ge=0, description="Of those, how many are kept from training to measure on."
    )
    seed: Seed = Field(0, description="Decides which queries are taken, and sampled responses.")

    @model_validator(mode="after")
    def _check_training_queries(self) -> GenerationParameters:
        asked = self.queries_per_category
        if asked is not None and self.held_out_per_category >= asked:
            raise ValueError("held_out_per_category: must be below queries_per_category")
        return self

    def sampling(self, stop: tuple[str, ...]) -> SamplingParameters:
        """Return how each response is drawn."""
        return SamplingParameters(self.max_new_tokens, self.temperature, self.top_p, stop)


class LaunchParameters(Settings):
    """On how many processes SAMI trains; one is the pipeline's own process."""

    num_processes: PositiveInt = Field(
        1, description="Workers on all machines together; each takes a GPU where there are any."
    )
    num_machines: PositiveInt = Field(
        1,
        description="Machines that share the workers evenly, and a file system with this project's "
        "data folder; what the others run is in docs/gpus.md.",
    )
    rendezvous_endpoint: Annotated[str, Field(pattern=r"^[^:\s]+:\d+$")] | None = Field(
        None, description="HOST:PORT of this machine, where the others find it."
    )
    rendezvous_timeout: PositiveInt = Field(
        900, description="Seconds in which all machines must be there."
    )
    max_restarts: NonNegativeInt = Field(
        3,
        description="How often all workers are restarted, from the last saved state, after one "
        "has died.",
    )

    @model_validator(mode="after")
    def _check_machines(self) -> LaunchParameters:
        if self.num_processes % self.num_machines:
            raise ValueError(
                f"num_processes: {self.num_processes} can't be shared evenly by "
                f"{self.num_machines} machines"
            )
        if self.num_machines > 1 and self.rendezvous_endpoint is None:
            raise ValueError("rendezvous_endpoint: give HOST:PORT, where the machines meet")
        return self


class TrainingParameters(OpenSettings):
    """How the student is trained; the loop's own parameters are those of ``core``.

    Every baseline has its own group of parameters here.
    """

    device: Device = Field(
        "auto", description=f"{DESCRIPTION} Several processes choose by themselves."
    )
    sami: SamiTrainingConfig = SamiTrainingConfig()
    launch: LaunchParameters = LaunchParameters()
    held_out_after_steps: PositiveInt | None = Field(
        None,
        description="Show SAMI's objective on held-out queries after so many of its steps, too, as "
        "a first result; None measures before and after its training alone. Only where one process "
        "trains; computed in the dtype of the trained weights.",
    )
    dpo: DpoParameters = DpoParameters()
    sft: SftParameters = SftParameters()
    seed: Seed = Field(0, description="Of the shuffled principles.")

    _no_resamples = model_validator(mode="before")(_refuse_resamples)

    @classmethod
    def further_groups(cls) -> dict[str, type[Settings]]:
        """Return the settings of baselines that have no field here, by group."""
        return {
            baseline.settings_group: baseline.settings
            for baseline in baselines().values()
            if baseline.settings is not NoSettings
        }

    @field_validator("sami", mode="before")
    @classmethod
    def _lists_of_the_command_line(cls, value: Any) -> Any:
        return with_lists(value, SamiTrainingConfig)

    @model_validator(mode="after")
    def _check_workers(self) -> TrainingParameters:
        if self.launch.num_processes > 1:
            try:
                self.sami.check_many_workers()
            except ValueError as error:
                raise ValueError(f"sami.{error}") from None
        return self


class IterationsParameters(Settings):
    """Iterated SAMI, as published (arXiv 2404.14313).

    Each iteration starts again from the *initial* student, on responses sampled from the model of
    the iteration before, alternating between two halves of the training queries.
    """

    count: int = Field(
        1, ge=1, le=100, description="Number of iterations; 1 trains on all queries."
    )
    steps: tuple[PositiveInt, ...] | None = Field(
        None,
        description="Optimiser steps of each iteration, published as growing: [2, 4, 6]; None "
        "leaves training.sami.max_steps as it is.",
    )
    engine: LoadingEngine | None = Field(
        None,
        description="What loads the teachers of later iterations, which are models trained here; "
        "None takes generation.engine.",
    )

    @model_validator(mode="after")
    def _check_steps(self) -> IterationsParameters:
        if self.steps is not None and len(self.steps) != self.count:
            raise ValueError(f"steps: give {self.count}, one for each iteration")
        return self

    def generation_engine(self, engine: EngineParameters, iteration: int) -> EngineParameters:
        """Return what writes the responses of an iteration (from 1), the first being given."""
        return engine if iteration == 1 or self.engine is None else self.engine

    def training_config(self, config: SamiTrainingConfig, iteration: int) -> SamiTrainingConfig:
        """Return SAMI's settings in an iteration (from 1)."""
        if self.steps is None:
            return config
        return config.replaced(max_steps=self.steps[iteration - 1])

    def half(self, iteration: int) -> int | None:
        """Return which half of the training queries an iteration (from 1) uses; None is all."""
        return None if self.count == 1 else (iteration - 1) % 2


class EvaluationParameters(Settings):
    """How models under test answer questions and how their answers are compared."""

    engine: LoadingEngine = EngineParameters()
    max_new_tokens: Tokens = Field(1024, description="Limit of an answer, in tokens.")
    temperature: NonNegativeFloat = Field(
        0.0,
        description="Of answers in categories that temperatures does not name; 0 is greedy.",
    )
    temperatures: dict[str, NonNegativeFloat] = Field(
        {},
        description="Sampling temperature by category; MT-Bench needs one for each of its own.",
    )
    turns: Literal[1, 2] = Field(
        2,
        description="Of each question, how many are asked and judged; 1 leaves out the second turn "
        "of MT-Bench, as arXiv 2410.01704 does.",
    )
    contrasting: bool = Field(
        True,
        description="Also ask the first turn under the contrasting constitution; False leaves it "
        "out, and with it what is measured by it: steerability.",
    )
    without_constitution: bool = Field(
        False, description="Also answer all turns without any constitution."
    )
    trained_wording: bool = Field(
        False,
        description="Also ask the first turn under the desired constitution in the words that were "
        "trained on, where principles have others for evaluation: what is followed beyond the "
        "words that were seen.",
    )
    contrast: Contrast = Field(
        "opposite", description="Which contrasting constitution the first turn is asked under."
    )
    questions_per_category: PositiveInt | None = Field(
        None, description="Answer only the first questions of each category; None answers all."
    )
    resamples: _Count = Field(
        10_000,
        description="Bootstrap samples per interval of win rates with length held equal.",
    )
    seed: Seed = Field(0, description="Of the shuffled principles, sampled answers and bootstrap.")

    def temperature_of(self, category: str) -> float:
        """Return the sampling temperature of a category's answers."""
        return self.temperatures.get(category, self.temperature)


def _known_judge(kind: str) -> str:
    from sami_pipeline.evaluation.judge_kinds import KINDS

    known = [CHECKLIST, *(each.name for each in KINDS)]
    if kind not in known:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(known)}")
    return kind


class ModelJudgeParameters(Settings):
    """What a model that judges is asked, and which model it is."""

    kind: Annotated[str, AfterValidator(_known_judge)] = Field(
        CHECKLIST,
        description="The checklist judges every run and needs no model. A model judges too with "
        "pairwise (which answer is better), constitution (which follows the constitution better) "
        "or single (a rating from 1 to 10 of each answer). principle_based, principle_based_form "
        "and principle_free ask what arXiv 2410.01704 asks, of first turns.",
    )
    orders: Literal["both", "random"] = Field(
        "both",
        description="both compares two answers twice, each once first, and a win needs both to "
        "agree; random asks once, in an order drawn for each question, as arXiv 2410.01704 does.",
    )
    no_verdict: Literal["invalid", "tie"] = Field(
        "invalid",
        description="What a call of a comparison counts as from which no verdict can be read: "
        "invalid leaves the comparison out, tie counts it as half a win, as arXiv 2410.01704 does.",
    )
    answer_format: Literal["text", "choice"] = Field(
        "text",
        description="text lets the judge explain its verdict; choice holds it to a bare verdict, "
        "the likeliest where the engine reads log-probabilities: for small local judges.",
    )
    engine: EngineParameters = EngineParameters()
    model: ModelName | None = Field(
        None, description="One of models.sources; None where the engine is a server."
    )
    references: Literal["corrected", "published"] = Field(
        "corrected",
        description="What the judge sees in math, reasoning and coding: the question file's own "
        "reference answers and GPT-4's where it has none, or, published, GPT-4's throughout, of "
        "which 13 of 30 are wrong (FastChat's pull request 3158).",
    )
    max_new_tokens: Tokens = Field(2048, description="Limit of a judgement in text.")
    temperature: NonNegativeFloat = Field(0.0, description="Of judgements in text; 0 is greedy.")
    repeats: int = Field(
        1,
        ge=1,
        le=100,
        description="How often each call is asked, at a temperature above 0: the verdict given "
        "most often counts (of ratings the mean), and how often two repeats agree is reported.",
    )
    seed: Seed = Field(0, description="Of sampled judgements, and of the orders that are drawn.")

    @model_validator(mode="after")
    def _check_no_verdict(self) -> ModelJudgeParameters:
        from sami_pipeline.evaluation.judge_kinds import KINDS

        if self.no_verdict == "tie" and self.kind in {kind.name for kind in KINDS if kind.rates}:
            raise ValueError(f"no_verdict: {self.kind} rates single answers; choose invalid")
        return self

    @model_validator(mode="after")
    def _check_repeats(self) -> ModelJudgeParameters:
        if self.repeats > 1 and (self.temperature == 0 or self.answer_format == "choice"):
            raise ValueError(
                "repeats: with temperature 0 or answer_format: choice all repeats are the same; "
                "set a temperature above 0 and answer_format: text, or repeats to 1"
            )
        return self

    @property
    def is_model(self) -> bool:
        """Whether a model judges, and not the checklist alone."""
        return self.kind != CHECKLIST

    @property
    def judge_model(self) -> str:
        """The name of the model that judges, among the sources or at the server."""
        return self.model or self.engine.served_model

    @property
    def judge_name(self) -> str:
        """What the judge is called in the tables' column ``judge``."""
        return self.kind


class SecondJudgeParameters(ModelJudgeParameters):
    """A second model that judges the same answers; its kind must be given."""

    @property
    def judge_name(self) -> str:
        """What the judge is called in the tables' column ``judge``."""
        return f"second_{self.kind}"

    @model_validator(mode="after")
    def _check_second_kind(self) -> SecondJudgeParameters:
        if not self.is_model:
            raise ValueError("kind: the checklist judges anyway; name another")
        return self


class JudgeParameters(ModelJudgeParameters):
    """A judge besides the checklist, and the model that it asks. It decides the graph."""

    second: SecondJudgeParameters | None = Field(
        None,
        description="Another model, or the same asked in another way, that judges the same "
        "answers; how far both agree is reported.",
    )

    @model_validator(mode="after")
    def _check_second_judge(self) -> JudgeParameters:
        if self.second is not None and not self.is_model:
            raise ValueError("second: needs a first judge; name what it is asked in judge.kind")
        return self

    @property
    def by_place(self) -> dict[str, ModelJudgeParameters]:
        """The models that judge, by the place of their parameters."""
        judges = {"judge": self} if self.is_model else {}
        return judges if self.second is None else judges | {"judge.second": self.second}


class ProblemsParameters(Settings):
    """Where the math problems come from."""

    source: Annotated[str, Field(pattern=r"^(reasoning_gym|gsm8k:.+)$")] = Field(
        "reasoning_gym",
        description="reasoning_gym generates problems; gsm8k:LOCATION reads GSM8K from parquet or "
        "its original jsonl, {split} in LOCATION standing for train and test, such as "
        "gsm8k:hf://datasets/openai/gsm8k/main/{split}-00000-of-00001.parquet.",
    )
    training_source: Annotated[str, Field(pattern=r"^math:.+$")] | None = Field(
        None,
        description="Other problems to train on: math:LOCATION reads the columns problem and "
        "solution of any parquet or jsonl, such as MATH's (arXiv 2103.03874). null trains on the "
        "source's own.",
    )
    test_split: Literal["test", "train"] = Field(
        "test",
        description="Which of GSM8K's splits is tested on. arXiv 2410.01704 tests on train; that "
        "needs a training_source.",
    )
    families: dict[Literal["gsm_symbolic", "chain_sum"], PositiveInt] = Field(
        {"gsm_symbolic": 1},
        description="Generated families, and how many parts of the problems each gives.",
    )
    train: _Count = Field(200, description="Training problems.")
    test: _Count | None = Field(50, description="Test problems; None takes all of GSM8K's.")
    shared_templates: bool = Field(
        True,
        description="False keeps the templates of generated training and test problems apart.",
    )
    seed: Seed = Field(0, description="Decides which problems are generated or drawn.")

    @model_validator(mode="after")
    def _check_problem_counts(self) -> ProblemsParameters:
        if self.source == "reasoning_gym" and self.test is None:
            raise ValueError("test: say how many problems to generate")
        if self.source != "reasoning_gym" and "{split}" not in self.source:
            raise ValueError("source: {split} is missing; it stands for train and test")
        if self.test_split == "train" and self.training_source is None:
            raise ValueError(
                "test_split: train would test on what is trained on; name a training_source"
            )
        if self.test_split == "train" and self.source == "reasoning_gym":
            raise ValueError("test_split: train is there for gsm8k; generated problems have none")
        return self


class PublishedDifference(Settings):
    """A published gain in accuracy, drawn next to what was measured here."""

    model: ModelName = Field(description="The model that gained.")
    over: ModelName = Field(description="The model that it is a gain over.")
    k: PositiveInt = Field(description="Number of attempts.")
    points: float = Field(description="Percentage points.")
    source: str = Field(description="The publication.")


class AccuracyParameters(Settings):
    """How models under test attempt the problems."""

    engine: LoadingEngine = EngineParameters()
    max_new_tokens: Tokens = Field(256, description="Limit of an attempt, in tokens.")
    attempts: _Count | tuple[_Count, ...] = Field(
        10,
        description="Sampled attempts at each problem. A list such as [1, 10, 32] samples as many "
        "as its greatest and reports accuracy with each of these numbers alone.",
    )
    temperature: PositiveFloat = Field(0.7, description="Of the samples; one more is greedy.")
    under_constitution: bool = Field(
        True,
        description="Ask under the desired constitution; false asks under none, as arXiv "
        "2410.01704 does for math.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling; 1 keeps the whole distribution."
    )
    published: tuple[PublishedDifference, ...] = Field(
        (), description="Published gains, a separate layer in the figures."
    )
    seed: Seed = Field(0, description="Of the samples.")

    _no_resamples = model_validator(mode="before")(_refuse_resamples)

    @field_validator("attempts")
    @classmethod
    def _some_attempts(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if not value:
            raise ValueError("name at least one number of attempts")
        return value if isinstance(value, int) else tuple(sorted(set(value)))

    @property
    def samples(self) -> int:
        """Sampled attempts at each problem."""
        return self.attempts if isinstance(self.attempts, int) else max(self.attempts)

    @property
    def reported(self) -> tuple[int, ...]:
        """Numbers of attempts that accuracy is reported with."""
        if isinstance(self.attempts, int):
            return tuple(range(1, self.attempts + 1))
        return self.attempts


class ReportParameters(Settings):
    """What an experiment's report holds."""

    questions_per_category: PositiveInt | None = Field(
        100,
        description="Questions (or problems of one family) in the browser of answers, the first "
        "ones of each category; None takes all.",
    )


def replicate_name(model: str, first_seed: int, number: int) -> str:
    """Return the name of a training of a model, from number 0, which has the model's own."""
    return f"{model}_seed_{first_seed + number}" if number else model


class ExperimentParameters(Settings):
    """What every experiment has: models, and how they are trained."""

    # Whether a training response can be told to be right: there are problems with solutions.
    solutions_are_known: ClassVar[bool] = False

    models: ModelsParameters
    constitutions: ConstitutionsParameters
    generation: GenerationParameters
    iterations: IterationsParameters = IterationsParameters()
    training: TrainingParameters
    report: ReportParameters = ReportParameters()
    seeds: int = Field(
        1,
        ge=1,
        le=100,
        description="How often SAMI and every baseline are trained, on the same responses: with "
        "training.sami.seed and the seeds that follow it. Their results are taken together, with "
        "intervals over questions (or problems) and training seeds.",
    )

    @model_validator(mode="after")
    def _check_seeds(self) -> ExperimentParameters:
        if self.training.sami.seed + self.seeds > 2**32:
            raise ValueError("seeds: too many; with training.sami.seed they must stay below 2**32")
        return self

    @model_validator(mode="after")
    def _check_models_under_test(self) -> ExperimentParameters:
        known = {*self.models.sources, *trained_models(), *self.earlier_models()}
        for name in self.models.under_test:
            if name == HOSTED:
                raise ValueError(
                    f"models.under_test: {HOSTED!r} can only teach; models under test are loaded "
                    "from models.sources or trained here"
                )
            if name not in known:
                raise ValueError(
                    f"models.under_test: {name!r} is unknown; known: {', '.join(sorted(known))}"
                )
        return self

    @model_validator(mode="after")
    def _check_solutions(self) -> ExperimentParameters:
        if not self.solutions_are_known:
            if self.models.teacher == WORKED_SOLUTIONS:
                raise ValueError(f"models.teacher: {WORKED_SOLUTIONS!r} is only there for math")
            if self.training.sft.only_correct:
                raise ValueError("training.sft.only_correct: is only there for math")
        return self

    @model_validator(mode="after")
    def _check_engines(self) -> ExperimentParameters:
        hosted = self.models.teacher == HOSTED
        if hosted != self.generation.engine.asks_server:
            raise ValueError(
                f"models.teacher: {HOSTED!r} goes together with generation.engine.kind: openai; "
                f"the teacher is {self.models.teacher!r}, the engine "
                f"{self.generation.engine.kind!r}"
            )
        if hosted and self.iterations.count > 1 and self.iterations.engine is None:
            raise ValueError(
                "iterations.engine: missing; later iterations' teachers are trained here, so say "
                "what loads them, such as {kind: transformers}"
            )
        return self

    @model_validator(mode="after")
    def _check_lora(self) -> ExperimentParameters:
        known = baselines()
        whole = [
            name
            for name in self.trained_models()
            if name in known and not (known[name].is_sami or known[name].follows_lora)
        ]
        if whole and self.training.sami.lora is not None:
            raise ValueError(
                f"training.sami.lora: {' and '.join(whole)} trained with all weights; take out of "
                "models.under_test what needs them, or set lora: null"
            )
        return self

    def trained_models(self) -> tuple[str, ...]:
        """Return the models that the last iteration's responses train: those under test.

        A baseline that goes on with another, such as SAMI after SFT, needs that model trained too.
        SAMI from the student is trained where it is under test, or no other SAMI is.
        """
        known = baselines()
        wanted = set(self.models.under_test)
        if wanted.isdisjoint(sami_models()):
            wanted.add(SAMI)
        for name in reversed(known):
            if name in wanted and known[name].starts_from:
                wanted.add(known[name].starts_from)
        return tuple(name for name in trained_models() if name in wanted)

    def drawn_models(self) -> tuple[str, ...]:
        """Return all models that a figure may show, the student first; see `model_colours`."""
        models = self.models
        return tuple(dict.fromkeys((models.student, *models.under_test, *self.trained_models())))

    def replicates(self, model: str) -> dict[str, int]:
        """Return the trainings of a model by the name of the checkpoint, each with its seed.

        The first has the model's own name, so that it is the one that a run with one seed makes. A
        model that the last iteration does not train has one, without a seed.
        """
        if model not in self.trained_models():
            return {model: NO_SEED}
        first = self.training.sami.seed
        return {
            replicate_name(model, first, number): first + number for number in range(self.seeds)
        }

    def replicates_under_test(self) -> dict[str, tuple[str, int]]:
        """Return the model and the seed of every checkpoint that is tested, by its name."""
        return {
            name: (model, seed)
            for model in self.models.under_test
            for name, seed in self.replicates(model).items()
        }

    def replicate_pairs(self) -> list[tuple[str, str]]:
        """Return which checkpoints are compared; see ``evaluation.seeds``."""
        return [
            (name, other_name)
            for model, other in self.models.pairs()
            for name, seed in self.replicates(model).items()
            for other_name, other_seed in self.replicates(other).items()
            if seed == other_seed or not share_training(model, other, self.models.lineage)
        ]

    @property
    def imported_models(self) -> list[ImportedModel]:
        """The models of ``models.sources``; files of answers are none."""
        models = self.models
        return [
            ImportedModel(name, source, name in models.trust_remote_code, models.chat)
            for name, source in models.sources.items()
            if name not in models.answer_files
        ]

    def earlier_models(self) -> dict[str, str]:
        """Return the checkpoints of the iterations before the last, by the model's name."""
        return {
            f"{ITERATION_MODEL}{number}": f"iteration_{number}.sami_checkpoint"
            for number in range(1, self.iterations.count)
        }


class JudgedParameters(ExperimentParameters):
    """What experiments have whose answers are judged: by the checklist, and by a model if asked."""

    evaluation: EvaluationParameters
    judge: JudgeParameters = JudgeParameters()

    @model_validator(mode="after")
    def _check_judge_model(self) -> JudgedParameters:
        known = ", ".join(self.models.sources)
        for place, judge in ({"judge": self.judge} | self.judge.by_place).items():
            asks_a_server, given = judge.engine.asks_server, judge.model is not None
            if given and judge.model not in self.models.sources:
                raise ValueError(f"{place}.model: {judge.model!r} has no source; known: {known}")
            if judge.model in self.models.answer_files:
                raise ValueError(f"{place}.model: {judge.model!r} is a file of answers")
            if given and asks_a_server:
                raise ValueError(
                    f"{place}.model: a server has its own; name it in {place}.engine.openai"
                )
            if judge.is_model and not given and not asks_a_server:
                raise ValueError(f"{place}.model: name the model that judges; known: {known}")
        return self


class MtBenchParameters(JudgedParameters):
    """All parameter groups of the MT-Bench experiment."""

    queries: QueriesParameters

    @model_validator(mode="after")
    def _check_temperatures(self) -> MtBenchParameters:
        given, known = self.evaluation.temperatures, set(MT_BENCH_CATEGORIES)
        if missing := [name for name in MT_BENCH_CATEGORIES if name not in given]:
            raise ValueError(f"evaluation.temperatures: {', '.join(missing)} missing")
        if unknown := sorted(given.keys() - known):
            raise ValueError(
                f"evaluation.temperatures: {one_line(unknown[0])!r} is no category; known: "
                f"{', '.join(MT_BENCH_CATEGORIES)}"
            )
        return self


class MathParameters(ExperimentParameters):
    """All parameter groups of the math experiment."""

    solutions_are_known = True

    problems: ProblemsParameters
    accuracy: AccuracyParameters

    @model_validator(mode="after")
    def _check_attempted_models(self) -> MathParameters:
        for name in self.models.answer_files:
            raise ValueError(f"models.sources.{name}: a file of answers can't attempt problems")
        return self


class PublishedRate(Settings):
    """A win rate read off a published figure, drawn next to what its verdicts give."""

    model: ModelName = Field(description="The model whose rate it is.")
    opponent: ModelName = Field(description="The model that it was compared with.")
    category: str = Field(description="The category, or overall.")
    percent: float = Field(ge=0, le=100, description="Of the comparisons, a tie counting half.")


class PublishedParameters(Settings):
    """Where the published answers and verdicts of arXiv 2410.01704 are."""

    folder: str | None = Field(
        None,
        description="A clone of github.com/SohamGovande/sami-extension; files are found by their "
        "name in it or anywhere below.",
    )
    answers: dict[ModelName, str] = Field(description="The file of each model's answers.")
    verdicts: dict[ModelName, str] = Field(
        description="The file of each model's verdicts against the baseline."
    )
    baseline: ModelName = Field(description="The model that the others were compared with.")
    judge: str = Field(description="What the published judge is called here.")
    max_new_tokens: Tokens = Field(
        750, description="The published limit of an answer; one that reaches it was cut off."
    )
    rates: tuple[PublishedRate, ...] = Field(
        (), description="Published win rates, a separate layer in the figure."
    )
    source: str = Field("arXiv 2410.01704", description="What the published rates are called.")
    resamples: _Count = Field(10_000, description="Bootstrap samples of length control.")
    seed: Seed = Field(0, description="Of the bootstrap.")
    report: ReportParameters = ReportParameters(questions_per_category=None)

    @model_validator(mode="after")
    def _check_answers(self) -> PublishedParameters:
        for name in (self.baseline, *self.verdicts):
            if name not in self.answers:
                raise ValueError(f"answers: {name!r} is missing; name its file")
        return self


class QueryColumnsParameters(Settings):
    """How queries are read from a table of any shape."""

    query: str = Field(
        "query",
        description="Column of the queries; info.post is the field post of a column info.",
    )
    category: str | None = Field(
        None, description="Column of the categories; null puts all queries into one."
    )
    where: dict[str, Any] = Field({}, description="Keep rows whose columns have these values.")
    starts_after: str = Field(
        "", description="The query is what follows this text; empty begins with the first letter."
    )
    ends_before: str = Field(
        "", description="The query ends where this text comes next; empty takes all."
    )
    wording: str = Field(
        "{query}", description="What is asked of a query, such as 'Summarise this: {query}'."
    )
    duplicates: Literal["refuse", "drop"] = Field(
        "refuse", description="What is done about a query that stands twice; drop keeps the first."
    )

    @field_validator("wording")
    @classmethod
    def _holds_the_query(cls, value: str) -> str:
        if "{query}" not in value:
            raise ValueError("must hold {query}, which stands for the query")
        return value


class QuerySplitParameters(Settings):
    """How queries are split: each is trained on, held out to measure the objective, or asked."""

    test: float = Field(
        0.3, gt=0, lt=1, description="Share that models under test answer, of each category."
    )
    held_out: float = Field(
        0.1, ge=0, lt=1, description="Share that the objective is measured on, of each category."
    )
    most: _Count | None = Field(
        None, description="Draw at most so many queries of each category; null takes all."
    )
    seed: Seed = Field(0, description="Decides which query is in which part.")

    @model_validator(mode="after")
    def _check_split(self) -> QuerySplitParameters:
        if self.test + self.held_out >= 1:
            raise ValueError("test: with held_out, must be below 1; the rest is trained on")
        return self


class AlignParameters(JudgedParameters):
    """All parameter groups of the experiment on one's own queries and principles.

    Of ``generation``, ``queries_per_category`` and ``held_out_per_category`` are not read here:
    ``split`` decides.
    """

    queries: str = Field(
        min_length=1,
        max_length=1000,
        description="Table of queries: a path or address of .csv, .tsv, .jsonl or .parquet, such "
        "as hf://datasets/OWNER/NAME/FILE.parquet; .gz is unpacked.",
    )
    principles: str = Field(
        min_length=1,
        max_length=1000,
        description="YAML file of principles, or the folder of constitutions of a clone of "
        "github.com/janphilippfranken/sami.",
    )
    columns: QueryColumnsParameters = QueryColumnsParameters()
    split: QuerySplitParameters = QuerySplitParameters()


class DryRunParameters(Settings):
    """What ``dry_run=true`` assumes: the machine, and what it can't know without the data."""

    gpu_memory_gb: PositiveFloat | None = Field(
        None,
        description="Memory of one GPU in 10^9 bytes; null takes that of the GPU that is there, "
        "and where there is none that of the machine.",
    )
    reserve_gb: NonNegativeFloat = Field(
        1.5, description="Of it, what CUDA, its libraries and unusable gaps take."
    )
    disk_gb: PositiveFloat | None = Field(
        None,
        description="Free space for the folder data/ in 10^9 bytes; null takes what is free there.",
    )
    teraflops: PositiveFloat = Field(
        description="Rate of large matrix products in the dtype that is computed in, in 10^12 "
        "operations a second."
    )
    utilisation: float = Field(
        0.4, gt=0, le=1, description="Share of that rate, and of the bandwidth, that is reached."
    )
    bandwidth_gb_per_s: PositiveFloat = Field(
        description="Of the memory; writing a response reads all weights for each of its tokens."
    )
    query_tokens: PositiveInt = Field(
        300, description="Tokens of the longest query or question that is allowed for."
    )


class CompareRunsParameters(Settings):
    """Which runs ``compare_runs`` puts side by side."""

    runs: tuple[str, ...] | None = Field(
        None, description="Names of runs in their order; null compares all that have results."
    )
    pooled: tuple[str, ...] = Field(
        (),
        description="Names of runs that differ in training.sami.seed alone; they are compared as "
        "one run more, called pooled, with intervals over questions and training seeds.",
    )

    @field_validator("runs", "pooled", mode="before")
    @classmethod
    def _separated_by_spaces(cls, value: Any) -> Any:
        # As they were given before lists could be; "+" still separates them too.
        return "+".join(value.split()) if isinstance(value, str) else value


class PrincipleWritingParameters(Settings):
    """How a model writes principles; the pipeline write_principles alone reads them."""

    source: ModelSource | None = Field(
        None, description="The model that writes; None where the engine is a server."
    )
    trust_remote_code: bool = Field(
        False, description="Let the model's own Python code run, where its folder brings some."
    )
    chat: ChatParameters = ChatParameters()
    engine: EngineParameters = EngineParameters()
    categories: tuple[Category, ...] = Field(
        MT_BENCH_CATEGORIES, description="Categories that principles are written for."
    )
    per_category: _Count = Field(4, description="New principles of each category.")
    attempts: _Count = Field(
        3, description="How often the model is asked at most, while principles are missing."
    )
    max_new_tokens: Tokens = Field(1024, description="Limit of an answer, in tokens.")
    temperature: NonNegativeFloat = Field(
        0.7, description="Of the first attempt and of later ones."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling; 1 keeps the whole distribution."
    )
    seed: Seed = Field(0, description="Of sampled answers.")

    @model_validator(mode="after")
    def _check_attempts(self) -> PrincipleWritingParameters:
        if self.attempts > 1 and self.temperature == 0:
            raise ValueError("attempts: at temperature 0 all are alike; set attempts: 1")
        return self

    @model_validator(mode="after")
    def _check_writer(self) -> PrincipleWritingParameters:
        asks_a_server = self.engine.asks_server
        if self.source is None and not asks_a_server:
            raise ValueError("source: name the model that writes")
        if self.source is not None and asks_a_server:
            raise ValueError("source: a server has its own model; set source: null")
        return self

    @property
    def imported_models(self) -> list[ImportedModel]:
        """The model that writes, where it is no server's."""
        if self.source is None:
            return []
        return [ImportedModel("writer", self.source, self.trust_remote_code, self.chat)]

    def sampling(self) -> SamplingParameters:
        """Return how each answer is drawn."""
        return SamplingParameters(self.max_new_tokens, self.temperature, self.top_p)
