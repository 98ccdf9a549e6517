"""Which of two answers follows the constitution better (arXiv 2404.14313)."""

from sami_pipeline.evaluation.judge_kinds.base import JudgeKind
from sami_pipeline.evaluation.verdict_parser import comparison_verdict

KIND = JudgeKind(
    name="constitution",
    prompt="constitution-v1",
    sees_constitution=True,
    parse=comparison_verdict,
)
