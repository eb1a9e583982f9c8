"""Where the files of the benchmarks come from. Nothing is downloaded by this package."""

SOURCES = {
    "mmlu.zip": "data.tar of github.com/hendrycks/test, with its folder data/ packed as a zip file",
    "ceval.zip": "ceval-exam.zip of huggingface.co/datasets/ceval/ceval-exam",
    "cmmlu.zip": "cmmlu_v1_0_1.zip of huggingface.co/datasets/haonan-li/cmmlu",
    "gsm8k_test.jsonl": "grade_school_math/data/test.jsonl of github.com/openai/grade-school-math",
    "qwen_gsm8k_8shot.txt": "eval/gsm8k_prompt.txt of github.com/QwenLM/Qwen",
    "math500_test.jsonl": "prm800k/math_splits/test.jsonl of github.com/openai/prm800k",
    "minerva_math_4shot.json": "the four worked examples of Lewkowycz et al. 2022, appendix D.2, "
    'as a list of {"problem": ..., "solution": ...}',
    "math401.jsonl": "github.com/GanjinZero/math401-llm",
    "math23k_test.json": "the test split of Math23K (Wang et al. 2017)",
    "HumanEval.jsonl.gz": "data/HumanEval.jsonl.gz of github.com/openai/human-eval",
    "mbpp.jsonl": "mbpp/mbpp.jsonl of github.com/google-research/google-research",
    "bbh": "the folder bbh/ of github.com/suzgunmirac/BIG-Bench-Hard",
    "bbh_cot_prompts.json": "the files of cot-prompts/ of github.com/suzgunmirac/BIG-Bench-Hard, "
    "as one object from names of tasks to their texts",
}


def source_of(*names: str) -> str:
    """Returns where the first known of these files is from, as an instruction."""
    found = next((SOURCES[name] for name in names if name in SOURCES), None)
    return f"get it from {found}" if found else "get it from its authors"
