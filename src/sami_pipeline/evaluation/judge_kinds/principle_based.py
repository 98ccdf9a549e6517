"""Which of two answers follows the constitution better, as arXiv 2410.01704 asks (appendix B.3)."""

from sami_pipeline.evaluation.judge_kinds.base import ConstrainedVerdict, JudgeKind
from sami_pipeline.evaluation.verdict_parser import final_response_verdict

KIND = JudgeKind(
    name="principle_based",
    prompt="principle-based-v1",
    sees_constitution=True,
    parse=final_response_verdict,
    constrained=ConstrainedVerdict("Final Response: [[", ("A", "B")),
    ties="unanswered",
)
