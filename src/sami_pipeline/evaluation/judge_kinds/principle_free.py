"""Which of two answers is better, without the constitution (arXiv 2410.01704, appendix B.2)."""

from sami_pipeline.evaluation.judge_kinds.base import ConstrainedVerdict, JudgeKind
from sami_pipeline.evaluation.verdict_parser import COMPARISONS, final_response_verdict

KIND = JudgeKind(
    name="principle_free",
    prompt="principle-free-v1",
    parse=final_response_verdict,
    constrained=ConstrainedVerdict("Final Response: [[", COMPARISONS),
)
