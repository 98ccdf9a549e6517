"""The baselines that SAMI is compared with: one file each, listed in ``registry``.

They are trained on the responses that SAMI is trained on. Tokens, examples, steps and learning-rate
schedule are SAMI's: prompt and response are tokenised apart, a response that was cut off has no
end-of-sequence token, and a step takes as many examples as its queries give.
"""
