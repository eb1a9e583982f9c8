"""Scores of the report's tables 10 and 11, pass@1 in percent."""

from collections.abc import Mapping

from qwen_jax.evaluate.tasks.published import TABLE_2, TABLE_5, columns

TABLE_10 = columns(
    """
PaLM 540B                26.2 36.8
PaLM-Coder 540B          36.0 47.0
PaLM 2-S                 37.6 50.0
Code-Cushman-001         33.5 45.9
Code-Davinci-002         47.0 58.1
GPT-3.5                  73.2    -
GPT-4                    86.6    -
LLaMA2 7B                12.2 20.8
LLaMA2 13B               20.1 27.6
LLaMA2 34B               22.6 33.8
LLaMA2 70B               30.5 45.4
CodeGen-Multi 16B        18.3 20.9
CodeGen-Mono 16B         29.3 35.3
CodeGeeX2 6B             35.9    -
StarCoder-Prompted 15B   40.8 49.5
CodeT5+ 16B              30.9    -
InstructCodeT5+ 16B      35.0    -
Code LLaMA 7B            33.5 41.4
Code LLaMA 13B           36.0 47.0
Code LLaMA 34B           48.8 55.0
Code LLaMA-Instruct 7B   34.8 44.4
Code LLaMA-Instruct 13B  42.7 49.4
Code LLaMA-Instruct 34B  41.5 57.0
Code LLaMA-Python 7B     38.4 47.6
Code LLaMA-Python 13B    43.3 49.0
Code LLaMA-Python 34B    53.7 56.2
Unnatural Code LLaMA 34B 62.2 61.2
WizardCoder-Python 13B   64.0 55.6
WizardCoder-Python 34B   73.2 61.2
Qwen-Chat 7B             37.2 35.8
Qwen-Chat 14B            43.9 46.4
Code-Qwen 7B             40.2 41.8
Code-Qwen 14B            45.1 51.4
Code-Qwen-Chat 7B        43.3 44.2
Code-Qwen-Chat 14B       66.4 52.4
""",
    "HumanEval",
    "MBPP",
)
# HumanEvalPack, synthesize, zero-shot.
TABLE_11 = columns(
    """
GPT-4               86.6 82.9 81.7 72.6 78.7 67.1 78.3
InstructCodeT5+ 16B 37.0 18.9 17.4  9.5 19.8  0.3 17.1
StarChat-beta 15B   33.5 31.4 26.7 25.5 26.6 14.0 26.3
StarCoder 15B       33.6 30.8 30.2 17.6 31.6 21.8 27.6
CodeGeeX2 6B        35.9 32.2 30.8 22.5 29.3 18.1 28.1
OctoGeeX 6B         44.7 33.8 36.9 21.9 32.3 15.7 30.9
OctoCoder 15B       46.2 39.2 38.2 30.4 35.6 23.4 35.5
WizardCoder 15B     59.8 49.5 36.1 36.4 40.9 20.2 40.5
Qwen-Chat 7B        37.2 23.2 32.9 20.7 22.0  9.1 24.2
Qwen-Chat 14B       43.9 38.4 42.7 34.1 24.4 18.9 33.7
Code-Qwen 7B        40.2 40.4 40.2 26.2 20.7 15.8 30.6
Code-Qwen 14B       45.1 51.8 57.3 39.6 18.2 20.7 38.8
Code-Qwen-Chat 7B   43.3 41.5 49.4 29.3 32.9 20.1 36.1
Code-Qwen-Chat 14B  66.4 58.5 56.1 47.6 54.2 28.7 51.9
""",
    *("Python", "JavaScript", "Java", "Go", "C++", "Rust", "mean"),
)


def joined(**tables: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores of a benchmark that several tables have.

    A model whose score differs between tables, as LLaMA2's on HumanEval, keeps each with the
    table's name.

    Args:
      tables: such as TABLE_10=a column of that table.
    """
    scores: dict[str, dict[str, float]] = {}
    for table, column in tables.items():
        for model, score in column.items():
            scores.setdefault(model, {})[table.replace("_", " ").title()] = score
    found: dict[str, float] = {}
    for model, own in scores.items():
        if len(set(own.values())) == 1:
            found[model] = next(iter(own.values()))
        else:
            found |= {f"{model} ({table})": score for table, score in own.items()}
    return found


HUMANEVAL = joined(TABLE_2=TABLE_2["HumanEval"], TABLE_10=TABLE_10["HumanEval"])
HUMANEVAL_CHAT = joined(TABLE_5=TABLE_5["HumanEval"], TABLE_10=TABLE_10["HumanEval"])
MBPP = joined(TABLE_2=TABLE_2["MBPP"], TABLE_10=TABLE_10["MBPP"])
