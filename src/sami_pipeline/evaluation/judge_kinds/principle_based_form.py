"""The same, told to judge the form and not whether an answer is right, as the published code is."""

from dataclasses import replace

from sami_pipeline.evaluation.judge_kinds import principle_based

KIND = replace(principle_based.KIND, name="principle_based_form", prompt="principle-based-form-v1")
