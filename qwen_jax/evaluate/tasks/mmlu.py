"""MMLU: 57 subjects, multiple choice, 5-shot (report 2.6, Table 2; 3.3, Table 5).

The released script compares the next token's likelihood for " A" to " D", and averages over
questions. `mmlu@lm_eval` differs in the prompt. Hendrycks et al., ICLR 2021; data.tar or a zip file
of its folder `data`.
"""

import dataclasses
from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import lettered, published

COLUMNS = ("question", *lettered.LETTERS, "answer")
QUESTIONS = 14_042
_STEM = """abstract_algebra anatomy astronomy college_biology college_chemistry
college_computer_science college_mathematics college_physics computer_security conceptual_physics
electrical_engineering elementary_mathematics high_school_biology high_school_chemistry
high_school_computer_science high_school_mathematics high_school_physics high_school_statistics
machine_learning"""
_HUMANITIES = """formal_logic high_school_european_history high_school_us_history
high_school_world_history international_law jurisprudence logical_fallacies moral_disputes
moral_scenarios philosophy prehistory professional_law world_religions"""
_SOCIAL = """econometrics high_school_geography high_school_government_and_politics
high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
professional_psychology public_relations security_studies sociology us_foreign_policy"""
_OTHER = """business_ethics clinical_knowledge college_medicine global_facts human_aging management
marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine
virology"""
GROUPS = {  # of the released script, which counts anatomy as STEM
    "STEM": frozenset(_STEM.split()),
    "humanities": frozenset(_HUMANITIES.split()),
    "social sciences": frozenset(_SOCIAL.split()),
    "other": frozenset(_OTHER.split()),
}


def read(data: DataFolders) -> Questions:
    return lettered.read_archive(
        data,
        "mmlu.zip",
        test="data/test/{}_test.csv",
        dev="data/dev/{}_dev.csv",
        count=QUESTIONS,
        columns=COLUMNS,
    )


def header(subject: str) -> str:
    name = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {name}.\n\n"


def template(example: Example, shots: Sequence[Example]) -> str:
    def block(one: Example) -> str:
        return f"Question: {one.fields['question']}\n{lettered.lines(one)}Answer:"

    worked = "".join(f"{block(one)} {one.answer}\n\n" for one in shots)
    return header(example.subject) + worked + block(example)


def lm_eval_template(example: Example, shots: Sequence[Example]) -> str:
    return lettered.lm_eval_prompt(header(example.subject), "Answer:", example, shots)


MMLU = Task(
    name="mmlu",
    protocol="qwen",
    read=read,
    template=template,
    files=("mmlu.zip",),
    counts=QUESTIONS,
    source="Table 2",
    num_shots=5,
    choices=lettered.spaced,
    groups=GROUPS,
    published=published.TABLE_2["MMLU"],
)
TASKS = (MMLU, dataclasses.replace(MMLU, protocol="lm_eval", template=lm_eval_template))
