import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.engines import Completion
from sami_pipeline.evaluation.mt_bench_answers import held_out_requests, tabulate_held_out
from sami_pipeline.models.prompts import Prompt, PromptTemplate
from sami_pipeline.parameters import GenerationParameters

TEMPLATE = PromptTemplate(kind="chat", turn="{query}\n\n{constitution}", stop=("END",))
PARAMETERS = GenerationParameters(max_new_tokens=7, temperature=0.3)


def responses() -> pd.DataFrame:
    """A query to train on and one held out, which the teacher failed on."""
    return pd.DataFrame(
        [
            {"query_id": query, "category": "math", "constitution_index": index,
             "constitution": constitution, "split": split, "status": "same_response",
             "prompt": "asked of the teacher",
             "training_prompt": Prompt(messages=(("user", f"{query}: {constitution}"),)).to_json()}
            for query, split in (("a", "train"), ("b", "held_out"))
            for index, constitution in enumerate(("desired", "contrasting"))
        ]
    )  # fmt: skip


def test_held_out_queries_alone_are_asked_as_they_are_trained():
    rows, requests = held_out_requests(responses(), TEMPLATE, PARAMETERS)
    assert rows["query_id"].tolist() == ["b", "b"]
    texts = [request.prompt.messages[0][1] for request in requests]
    assert texts == ["b: desired", "b: contrasting"]
    for request in requests:
        assert request.sampling == PARAMETERS.sampling(("END",))


def test_responses_to_held_out_queries_are_tabulated_with_their_model():
    rows, _ = held_out_requests(responses(), TEMPLATE, PARAMETERS)
    completions = [Completion("yes", "stop", 5, 1), Completion("no no", "length", 6, 7)]
    table = schemas.HeldOutResponses.validate(tabulate_held_out("sami", rows, completions))
    assert (table["model"] == "sami").all()
    assert table["response"].tolist() == ["yes", "no no"]
    assert table["completion_tokens"].tolist() == [1, 7]


def test_nothing_held_out_gives_an_empty_table_that_the_catalog_accepts():
    everything = responses().assign(split="train")
    rows, requests = held_out_requests(everything, TEMPLATE, PARAMETERS)
    assert requests == []
    assert schemas.HeldOutResponses.validate(tabulate_held_out("sami", rows, [])).empty
