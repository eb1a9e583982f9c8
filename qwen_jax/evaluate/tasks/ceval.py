"""C-Eval: 52 Chinese subjects, multiple choice, 5-shot, validation set (report 2.6, Table 2).

The released script compares the next token's likelihood for "A" to "D", without a space, and
averages over subjects. `ceval@lm_eval`, which is lm-eval's ceval-valid, has a description in the
prompt, a space before the letter, and averages over questions. Huang et al., NeurIPS 2023;
ceval-exam.zip, here ceval.zip.
"""

import dataclasses
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

_NAMES = lettered.names_of("""accountant=注册会计师 advanced_mathematics=高等数学
art_studies=艺术学 basic_medicine=基础医学 business_administration=工商管理
chinese_language_and_literature=中国语言文学 civil_servant=公务员 clinical_medicine=临床医学
college_chemistry=大学化学 college_economics=大学经济学 college_physics=大学物理
college_programming=大学编程 computer_architecture=计算机组成 computer_network=计算机网络
discrete_mathematics=离散数学 education_science=教育学 electrical_engineer=注册电气工程师
environmental_impact_assessment_engineer=环境影响评价工程师 fire_engineer=注册消防工程师
high_school_biology=高中生物 high_school_chemistry=高中化学 high_school_chinese=高中语文
high_school_geography=高中地理 high_school_history=高中历史 high_school_mathematics=高中数学
high_school_physics=高中物理 high_school_politics=高中政治
ideological_and_moral_cultivation=思想道德修养与法律基础 law=法学 legal_professional=法律职业资格
logic=逻辑学 mao_zedong_thought=毛泽东思想和中国特色社会主义理论体系概论
marxism=马克思主义基本原理 metrology_engineer=注册计量师 middle_school_biology=初中生物
middle_school_chemistry=初中化学 middle_school_geography=初中地理 middle_school_history=初中历史
middle_school_mathematics=初中数学 middle_school_physics=初中物理 middle_school_politics=初中政治
modern_chinese_history=近代史纲要 operating_system=操作系统 physician=医师资格
plant_protection=植物保护 probability_and_statistics=概率统计 professional_tour_guide=导游资格
sports_science=体育学 tax_accountant=税务师 teacher_qualification=教师资格
urban_and_rural_planner=注册城乡规划师 veterinary_medicine=兽医学""")


def read(data: DataFolders) -> Questions:
    return lettered.read_archive(
        data, "ceval.zip", test="val/{}_val.csv", dev="dev/{}_dev.csv", count=QUESTIONS
    )


def template(example: Example, shots: Sequence[Example]) -> str:
    def block(one: Example) -> str:
        return f"问题：{one.fields['question']}\n{lettered.lines(one)}答案："

    worked = "".join(f"{block(one)}{one.answer}\n\n" for one in shots)
    return worked + block(example)


def lm_eval_template(example: Example, shots: Sequence[Example]) -> str:
    name = lettered.name_of(example.subject, _NAMES)
    description = f"以下是中国关于{name}的单项选择题，请选出其中的正确答案。\n\n"
    return lettered.lm_eval_prompt(description, "答案：", example, shots)


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
LM_EVAL = dataclasses.replace(
    CEVAL, protocol="lm_eval", template=lm_eval_template, choices=lettered.spaced, macro=False
)
TASKS = (CEVAL, LM_EVAL)
