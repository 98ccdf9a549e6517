"""Which of two answers is better, by MT-Bench's own prompts (arXiv 2306.05685)."""

from sami_pipeline.evaluation.judge_kinds.base import JudgeKind
from sami_pipeline.evaluation.verdict_parser import comparison_verdict

KIND = JudgeKind(
    name="pairwise",
    prompt="pair-v2",
    prompt_with_reference="pair-math-v1",
    parse=comparison_verdict,
)
