"""One model per parameter group; Kedro checks them before any node runs.

Loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

from sami_pipeline.checkpoints import ModelSource
from sami_pipeline.constitutions import Contrast
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.engines import EngineParameters, SamplingParameters
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES

Category = Literal[
    "writing", "humanities", "stem", "extraction", "coding", "math", "reasoning", "roleplay"
]
ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelsParameters(_Parameters):
    """The models of an experiment. They decide the graph."""

    sources: dict[ModelName, ModelSource] = Field(
        description="Models that come from outside, by name."
    )
    student: ModelName = Field(description="The model that SAMI trains.")
    teacher: ModelName = Field(description="The model that writes the training responses.")
    under_test: tuple[ModelName, ...] = Field(
        min_length=1, description="Models that answer the benchmark."
    )
    baseline: ModelName = Field(description="The model that the others are compared with.")

    @model_validator(mode="after")
    def _names_are_known(self) -> ModelsParameters:
        known = {*self.sources, "sami"}
        if "sami" in self.sources:
            raise ValueError("sources: 'sami' is the trained model; choose another name")
        for field in ("student", "teacher"):
            if getattr(self, field) not in self.sources:
                raise ValueError(
                    f"{field}: {getattr(self, field)!r} has no source; "
                    f"known: {', '.join(self.sources)}"
                )
        for name in self.under_test:
            if name not in known:
                raise ValueError(
                    f"under_test: {name!r} is unknown; known: {', '.join(sorted(known))}"
                )
        if not set(self.under_test) - {self.baseline}:
            raise ValueError("under_test: name a model besides the baseline to compare with it")
        if self.baseline not in self.under_test:
            raise ValueError(f"baseline: {self.baseline!r} must be one of under_test")
        return self


class QueryTableParameters(_Parameters):
    """How a category's queries are read from a table of the catalog."""

    query: str = Field(description="Name of the column that holds the query.")
    where: dict[str, Any] = Field({}, description="Keep rows whose columns have these values.")


class QueriesParameters(_Parameters):
    """Where the training queries come from."""

    per_category: PositiveInt = 40
    seed: int = 0
    tables: dict[Category, QueryTableParameters] = Field(
        {},
        description="Categories whose queries come from the catalog entry query_table_<category> "
        "and not from the project's own templates.",
    )


class ConstitutionsParameters(_Parameters):
    """How contrasting constitutions are sampled."""

    n_constitutions: int = Field(2, ge=2, description="Constitutions per query.")
    contrast: Contrast = "sampled"
    seed: int = 0


class GenerationParameters(_Parameters):
    """How training responses are written."""

    engine: EngineParameters = EngineParameters()
    max_new_tokens: PositiveInt = 96
    temperature: NonNegativeFloat = 0.0
    top_p: float = Field(1.0, gt=0, le=1)
    keep_truncated: bool = Field(
        True, description="Use responses that reached max_new_tokens; False marks them unusable."
    )
    keep_degenerate: bool = Field(
        False, description="Use responses that mostly repeat themselves; False marks them."
    )
    queries_per_category: PositiveInt = Field(
        20, description="Of the ingested queries, how many of each category are answered."
    )
    held_out_per_category: int = Field(
        4, ge=0, description="Of those, how many are kept from training to measure on."
    )
    seed: int = 0

    @model_validator(mode="after")
    def _something_to_train_on(self) -> GenerationParameters:
        if self.held_out_per_category >= self.queries_per_category:
            raise ValueError("held_out_per_category: must be below queries_per_category")
        return self

    def sampling(self, stop: tuple[str, ...]) -> SamplingParameters:
        """Return how each response is drawn."""
        return SamplingParameters(self.max_new_tokens, self.temperature, self.top_p, stop)


class TrainingParameters(_Parameters):
    """How the student is trained; the loop's own parameters are those of ``core``."""

    sami: SamiTrainingConfig = SamiTrainingConfig()
    resamples: PositiveInt = Field(10_000, description="Bootstrap samples per interval.")
    seed: int = Field(0, description="Of the shuffled principles and of the bootstrap.")


class EvaluationParameters(_Parameters):
    """How models under test answer MT-Bench and how their answers are compared."""

    engine: EngineParameters = EngineParameters()
    max_new_tokens: PositiveInt = 1024
    temperatures: dict[Category, NonNegativeFloat] = Field(
        description="Sampling temperature of each category; 0 is greedy."
    )
    without_constitution: bool = Field(
        False, description="Also answer both turns without any constitution."
    )
    contrast: Contrast = Field(
        "opposite", description="Which contrasting constitution the first turn is asked under."
    )
    questions_per_category: PositiveInt | None = Field(
        None, description="Answer only the first questions of each category; None answers all."
    )
    resamples: PositiveInt = Field(10_000, description="Bootstrap samples per interval.")
    seed: int = 0

    @model_validator(mode="after")
    def _every_category_has_a_temperature(self) -> EvaluationParameters:
        missing = [name for name in MT_BENCH_CATEGORIES if name not in self.temperatures]
        if missing:
            raise ValueError(f"temperatures: {', '.join(missing)} missing")
        return self


class ExperimentParameters(_Parameters):
    """All parameter groups of an experiment."""

    models: ModelsParameters
    queries: QueriesParameters
    constitutions: ConstitutionsParameters
    generation: GenerationParameters
    training: TrainingParameters
    evaluation: EvaluationParameters
