"""mt_bench_eval: models under test answer MT-Bench and are compared."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import JudgedParameters, JudgeParameters
from sami_pipeline.pipelines import bind, combine_tables, combined, for_each_model, result_nodes
from sami_pipeline.pipelines.mt_bench_eval.nodes import answering, drawing, judging, results
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.result_tables.registry import JUDGED


def create_pipeline(experiment: JudgedParameters) -> Pipeline:
    """Return the pipeline that evaluates every model under test on MT-Bench."""
    replicates, files = experiment.replicates_under_test(), experiment.models.answer_files
    checkpoints = {name: of for name, of in replicates.items() if name not in files}
    checklist_alone, drawn = not experiment.judge.is_model, experiment.drawn_models()
    return Pipeline(
        [
            *for_each_model(
                list(checkpoints),
                answering.respond_as,
                inputs=[
                    "responses",
                    "training_prompt",
                    "params:generation",
                    "params:evaluation",
                    "completions",
                ],
                output="held_out_responses",
            ),
            Node(
                bind(results.tabulate_held_out_lengths, replicates=checkpoints),
                inputs=[f"{name}_held_out_responses" for name in checkpoints],
                outputs="held_out_lengths",
                name="tabulate_held_out_lengths",
            ),
            Node(
                answering.constitute_questions,
                inputs=["questions", "principles", "params:evaluation"],
                outputs="question_constitutions",
                name="constitute_questions",
            ),
            *(
                Node(
                    bind(answering.read_answers_of, model=model),
                    inputs=[
                        f"{experiment.models.student}_checkpoint",
                        "questions",
                        "question_constitutions",
                        "params:models",
                        "params:evaluation",
                    ],
                    outputs=f"{model}_answers",
                    name=f"read_answers_of_{model}",
                )
                for model in replicates
                if model in files
            ),
            *for_each_model(
                list(checkpoints),
                answering.answer_as,
                inputs=[
                    "questions",
                    "question_constitutions",
                    "evaluation_prompt",
                    "params:evaluation",
                    "completions",
                ],
                output="answers",
            ),
            combined(replicates, "answers"),
            Node(
                check_answers,
                inputs=["answers", "principles"],
                outputs="checked",
                name="check_answers",
            ),
            Node(
                judging.judge_answers,
                inputs=["checked", "params:models", "params:judge"],
                outputs="verdicts" if checklist_alone else "checklist_verdicts",
                name="judge_answers",
            ),
            *([] if checklist_alone else _judging(experiment.judge)),
            *result_nodes(JUDGED, experiment),
            Node(
                bind(drawing.draw_win_rates, models=drawn),
                inputs="win_rates",
                outputs=["figure_win_rates", "figure_win_rates_html"],
                name="draw_win_rates",
            ),
            Node(
                bind(drawing.draw_compliance, models=drawn),
                inputs="compliance",
                outputs="figure_compliance",
                name="draw_compliance",
            ),
            Node(
                bind(drawing.draw_questions, models=drawn),
                inputs="verdicts",
                outputs="figure_questions",
                name="draw_questions",
            ),
            Node(
                bind(drawing.draw_lengths, models=drawn),
                inputs="degeneration",
                outputs="figure_lengths",
                name="draw_lengths",
            ),
        ]
    )


def _judging(judge: JudgeParameters) -> list[Node]:
    """Return the nodes of the one or two models that judge besides the checklist."""
    said = ["judgements"] if judge.second is None else ["first_judgements", "second_judgements"]
    asks = (judging.ask_judge, judging.ask_second_judge)
    asking = [
        Node(
            ask,
            inputs=[
                "answers",
                "questions",
                "question_constitutions",
                "judge_prompts",
                "params:models",
                "params:judge",
                "completions",
                *([f"{one.model}_checkpoint"] if one.model else []),
            ],
            outputs=output,
            name=ask.__name__,
        )
        for ask, output, one in zip(asks, said, judge.by_place.values(), strict=False)
    ]
    if judge.second is not None:
        asking.append(
            Node(combine_tables, inputs=said, outputs="judgements", name="combine_judgements")
        )
    return [
        *asking,
        Node(
            judging.decide_verdicts,
            inputs=["judgements", "params:models", "params:judge"],
            outputs="judge_verdicts",
            name="decide_verdicts",
        ),
        Node(
            combine_tables,
            inputs=["checklist_verdicts", "judge_verdicts"],
            outputs="verdicts",
            name="combine_verdicts",
        ),
    ]
