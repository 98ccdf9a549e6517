"""Ask a server many questions with a store, in a process that a test kills.

Run by test_openai_engine.py as ``python ask_many.py URL STORE REQUESTS``; prints a line when it is
done.
"""

import sys
from contextlib import closing
from pathlib import Path

from sami_pipeline.engines import (
    CompletionStore,
    EngineParameters,
    GenerationRequest,
    SamplingParameters,
    generate,
    open_engine,
)
from sami_pipeline.models.prompts import Prompt

url, folder, count = sys.argv[1:]
requests = [
    GenerationRequest(Prompt(messages=(("user", f"question {i}"),)), SamplingParameters(8))
    for i in range(int(count))
]
parameters = EngineParameters(kind="openai", openai={"base_url": url, "model": "small"})
with closing(open_engine(parameters)) as engine:
    completions = generate(
        engine, requests, seed=0, description="Tests", store=CompletionStore(Path(folder))
    )
print(len({completion.text for completion in completions}))
