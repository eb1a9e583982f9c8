"""Scores that the report's tables give, in percent."""

_TABLE_2 = """
MPT 7B              30.8 23.5  9.1  3.0 18.3 22.8 35.6
MPT 30B             47.9    - 15.2  3.1 25.0 32.8 38.0
Falcon 7B           27.8    -  6.8  2.3    - 11.2 28.0
Falcon 40B          57.0    - 19.6  5.5    - 29.8 37.1
ChatGLM2 6B         47.9 51.7 32.4  6.5    -    - 33.7
InternLM 7B         51.0 53.4 31.2  6.3 10.4 14.0 37.0
InternLM 20B        62.1 58.8 52.6  7.9 25.6 35.6 52.5
Baichuan2 7B        54.7 56.3 24.6  5.6 18.3 24.2 41.6
Baichuan2 13B       59.5 59.0 52.8 10.1 17.1 30.2 49.0
LLaMA 7B            35.6 27.3 11.0  2.9 12.8 17.7 33.5
LLaMA 13B           47.7 31.8 20.3  4.2 15.8 22.0 37.9
LLaMA 33B           58.7 37.5 42.3  7.1 21.7 30.2 50.0
LLaMA 65B           63.7 40.4 54.4 10.6 23.7 37.7 58.4
LLaMA2 7B           46.8 32.5 16.7  3.3 12.8 20.8 38.2
LLaMA2 13B          55.0 41.4 29.6  5.0 18.9 30.3 45.6
LLaMA2 34B          62.6    - 42.2  6.2 22.6 33.0 44.1
LLaMA2 70B          69.8 50.1 63.3 13.5 29.9 45.0 64.9
StableBeluga2 70B   68.6 51.4 69.6 14.6 28.0 11.4 69.3
Qwen 1.8B           44.6 54.7 21.2  5.6 17.1 14.8 28.2
Qwen 7B             58.2 63.5 51.7 11.6 29.9 31.6 45.0
Qwen 14B            66.3 72.1 61.3 24.8 32.3 40.8 53.4
"""
_TABLE_15 = """
Qwen 1.8B 49.3 36.9 44.9 71.6 53.2
Qwen 7B   62.2 45.8 52.5 84.0 75.3
Qwen 14B  71.0 52.3 61.9 90.3 84.4
"""
_TABLE_16 = """
Qwen 1.8B 68.0 60.1  3.2 58.4
Qwen 7B   76.4 66.8 17.4 67.9
Qwen 14B  86.2 70.3 23.9 71.1
"""
_TABLE_17 = """
Qwen 1.8B 56.7 73.3 56.1 39.0
Qwen 7B   75.1 77.9 69.9 47.4
Qwen 14B  80.2 79.9 77.9 57.9
"""


def columns(text: str, *names: str) -> dict[str, dict[str, float]]:
    """Returns benchmark -> model -> score; "-" is no score."""
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for line in text.strip().splitlines():
        words = line.split()
        model, scores = " ".join(words[: -len(names)]), words[-len(names) :]
        for name, score in zip(names, scores, strict=True):
            if score != "-":
                found[name][model] = float(score)
    return found


# Base models; for the others, the better of their own number and OpenCompass's.
TABLE_2 = columns(_TABLE_2, "MMLU", "C-Eval", "GSM8K", "MATH", "HumanEval", "MBPP", "BBH")
TABLE_15 = columns(_TABLE_15, "CMMLU", "AGIEval", "Gaokao", "ARC-e", "ARC-c")
TABLE_16 = columns(_TABLE_16, "BoolQ", "CSQA", "NQ", "LAMBADA")
TABLE_17 = columns(_TABLE_17, "HellaSwag", "PIQA", "SIQA", "OCNLI")
# Chat models; zero-shot and few-shot.
_TABLE_5 = """
GPT-3.5            -   69.1    -   52.5    -   78.2 73.2    -   70.1
GPT-4              -   83.0    -   69.9    -   91.4 86.6    -   86.7
ChatGLM2 6B       45.5 46.0   50.1 52.6    -   28.8 11.0    -   32.7
InternLM-Chat 7B   -   51.1    -   53.6    -   33.0 14.6    -   32.5
Baichuan2-Chat 7B  -   52.9    -   55.6    -   32.8 13.4    -   35.8
Baichuan2-Chat 13B -   57.3    -   56.7    -   55.3 17.7    -   49.9
LLaMA2-Chat 7B     -   46.2    -   31.9    -   26.3 12.2    -   35.6
LLaMA2-Chat 13B    -   54.6    -   36.2    -   37.1 18.9    -   40.1
LLaMA2-Chat 70B    -   63.8    -   44.3    -   59.3 32.3    -   60.8
Qwen-Chat 1.8B    42.4 43.9   50.7 50.3   27.8 19.5 14.6   27.1 25.0
Qwen-Chat 7B      55.8 57.0   59.7 59.3   50.3 54.1 37.2   39.6 46.7
Qwen-Chat 14B     64.6 66.5   69.8 71.7   60.1 59.3 43.9   46.9 58.7
"""
_TABLE_12 = """
Qwen-Chat 7B       50.3  6.8 57.4 51.2
Qwen-Chat 14B      60.1 18.4 70.1 67.0
Math-Qwen-Chat 7B  62.5 17.2 80.8 75.4
Math-Qwen-Chat 14B 69.8 24.2 85.0 78.4
GPT-4              92.0 42.5 83.5 74.0
GPT-3.5            80.8 34.1 75.1 60.0
Minerva 8B         16.2 14.1    -    -
Minerva 62B        52.4 27.6    -    -
Minerva 540B       58.8 33.6    -    -
RFT 7B             46.5  5.2    -    -
RFT 13B            52.1  5.1    -    -
WizardMath 7B      54.9 10.7    -    -
WizardMath 13B     63.9 14.0    -    -
WizardMath 70B     81.6 22.7    -    -
"""
TABLE_5 = columns(
    _TABLE_5, "MMLU 0", "MMLU 5", "C-Eval 0", "C-Eval 5", "GSM8K 0", "GSM8K 8", "HumanEval",
    "BBH 0", "BBH 3",
)  # fmt: skip
TABLE_12 = columns(_TABLE_12, "GSM8K", "MATH", "Math401", "Math23K")
