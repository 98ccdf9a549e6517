"""A rating from 1 to 10 of each answer, by MT-Bench's own prompts (arXiv 2306.05685)."""

from sami_pipeline.evaluation.judge_kinds.base import (
    ConstrainedVerdict,
    JudgeKind,
    decide_ratings,
    each_alone,
    mean_rating,
)
from sami_pipeline.evaluation.verdict_parser import (
    HIGHEST_RATING,
    LOWEST_RATING,
    rating_verdict,
)

KIND = JudgeKind(
    name="single",
    prompt="single-v1",
    prompt_with_reference="single-math-v1",
    parse=rating_verdict,
    constrained=ConstrainedVerdict(
        "Rating: [[",
        # Closed brackets: otherwise 1, with which 10 begins, would be at least as likely as 10.
        tuple(f"{rating}]]" for rating in range(LOWEST_RATING, HIGHEST_RATING + 1)),
    ),
    calls=each_alone,
    decide=decide_ratings,
    combine=mean_rating,
    rates=True,
)
