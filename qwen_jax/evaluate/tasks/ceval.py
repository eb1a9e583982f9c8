"""C-Eval: 52 Chinese subjects, multiple choice, 5-shot, validation set (report 2.6, Table 2).

The released script compares the next token's likelihood for "A" to "D", without a space, and
averages over subjects. Huang et al., NeurIPS 2023; ceval-exam.zip, here ceval.zip.
"""

from collections.abc import Sequence

from qwen_jax.evaluate.data_files import DataFolders
from qwen_jax.evaluate.task import Example, Questions, Task
from qwen_jax.evaluate.tasks import lettered, published

QUESTIONS = 1_346
_STEM = """computer_network operating_system computer_architecture college_programming
college_physics college_chemistry advanced_mathematics probability_and_statistics
discrete_mathematics electrical_engineer metrology_engineer high_school_mathematics
high_school_physics high_school_chemistry high_school_biology middle_school_mathematics
middle_school_biology middle_school_physics middle_school_chemistry veterinary_medicine"""
_SOCIAL = """college_economics business_administration marxism mao_zedong_thought education_science
teacher_qualification high_school_politics high_school_geography middle_school_politics
middle_school_geography"""
_HUMANITIES = """modern_chinese_history ideological_and_moral_cultivation logic law
chinese_language_and_literature art_studies professional_tour_guide legal_professional
high_school_chinese high_school_history middle_school_history"""
_OTHER = """civil_servant sports_science plant_protection basic_medicine clinical_medicine
urban_and_rural_planner accountant fire_engineer environmental_impact_assessment_engineer
tax_accountant physician"""
_HARD = """advanced_mathematics discrete_mathematics probability_and_statistics college_chemistry
college_physics high_school_mathematics high_school_chemistry high_school_physics"""
GROUPS = {
    "STEM": frozenset(_STEM.split()),
    "social sciences": frozenset(_SOCIAL.split()),
    "humanities": frozenset(_HUMANITIES.split()),
    "other": frozenset(_OTHER.split()),
    "hard": frozenset(_HARD.split()),
}


def read(data: DataFolders) -> Questions:
    return lettered.read_archive(
        data, "ceval.zip", test="val/{}_val.csv", dev="dev/{}_dev.csv", count=QUESTIONS
    )


def template(example: Example, shots: Sequence[Example]) -> str:
    def block(one: Example) -> str:
        return f"问题：{one.fields['question']}\n{lettered.lines(one)}答案："

    worked = "".join(f"{block(one)}{one.answer}\n\n" for one in shots)
    return worked + block(example)


CEVAL = Task(
    name="ceval",
    protocol="qwen",
    read=read,
    template=template,
    files=("ceval.zip",),
    counts=QUESTIONS,
    source="Table 2",
    num_shots=5,
    choices=lambda example: tuple(lettered.LETTERS),
    macro=True,
    groups=GROUPS,
    published=published.TABLE_2["C-Eval"],
)
