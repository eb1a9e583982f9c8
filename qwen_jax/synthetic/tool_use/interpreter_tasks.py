"""Items for the code interpreter: mathematics, charts and general files. Report: 3.4, Tables 7, 8.

Each has a question in English or Chinese, its files, what is right, and a program that finds it. A
chart is easy if it shows two columns that the question names, and hard if its data have to be
computed from a file that the question does not describe.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_COLUMNS = {  # names of columns: of categories, of numbers
    "en": (("shop", "crew", "garden", "lab"), ("sales", "weight", "visits", "yield")),
    "zh": (("门店", "班组", "花园", "实验室"), ("销量", "重量", "访问量", "产量")),
}
_NAMES: Mapping[str, Sequence[str]] = {
    "en": "Alder Birch Cedar Dogwood Elm Fir Ginkgo Hazel".split(),
    "zh": "甲 乙 丙 丁 戊 己 庚 辛".split(),
}
_KINDS = {
    "en": {"bar": "bar chart", "line": "line chart", "pie": "pie chart", "scatter": "scatter plot"},
    "zh": {"bar": "柱状图", "line": "折线图", "pie": "饼图", "scatter": "散点图"},
}
Row = dict[str, Any]


def items(*, math: int, hard: int, easy: int, general: int, seed: int) -> Iterator[Row]:
    """Yields rows with id, category, level, language, question, files, gold and program.

    Args:
      math, hard, easy, general: number of items of each kind; hard and easy are charts.
    """
    makers = (
        ("math", "", math, _math),
        ("visualization", "hard", hard, _hard_chart),
        ("visualization", "easy", easy, _easy_chart),
        ("general", "", general, _general),
    )
    for category, level, count, make in makers:
        for index in range(count):
            rng = random.Random(f"interpreter {category} {level} {seed} {index}")
            language = ("en", "zh")[index % 2]
            question, files, gold, program = make(rng, language, index // 2)
            yield {
                "id": "-".join(filter(None, (category, level, str(index)))),
                "category": category,
                "level": level,
                "language": language,
                "question": question,
                "files": files,
                "gold": gold,
                "program": program,
            }


Made = tuple[str, dict[str, str], Row, str]  # question, files, gold, program


def _primes(low: int, high: int) -> int:
    return sum(all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(max(2, low), high))


_MATH = (  # English, Chinese, program, and its value for a, b, c
    (
        "What is the sum of the digits of {a} to the power of {b}?",
        "{a}的{b}次方的各位数字之和是多少？",
        "print(sum(map(int, str({a} ** {b}))))",
        lambda a, b, c: sum(map(int, str(a**b))),
    ),
    (
        "How many primes are at least {a} and below {a} + {c}?",
        "大于等于{a}且小于{a}+{c}的质数有多少个？",
        "print(sum(n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1)) "
        "for n in range({a}, {a} + {c})))",
        lambda a, b, c: _primes(a, a + c),
    ),
    (
        "In how many ways can {b} of {a} people be chosen for a team?",
        "从{a}个人中选{b}个人组队，有多少种选法？",
        "import math\nprint(math.comb({a}, {b}))",
        lambda a, b, c: math.comb(a, b),
    ),
    (
        "How many integers from 1 to {c} are divisible by {a} or by {b}?",
        "从1到{c}的整数中，能被{a}或{b}整除的有多少个？",
        "print(sum(n % {a} == 0 or n % {b} == 0 for n in range(1, {c} + 1)))",
        lambda a, b, c: sum(n % a == 0 or n % b == 0 for n in range(1, c + 1)),
    ),
    (
        "{c} euros earn {b} percent of compound interest a year. How much are they worth after {a} "
        "years? Round to two decimal places.",
        "{c}元按每年{b}%的复利计息，{a}年后是多少元？保留两位小数。",
        "print(round({c} * (1 + {b} / 100) ** {a}, 2))",
        lambda a, b, c: round(c * (1 + b / 100) ** a, 2),
    ),
    (
        "What is the least common multiple of {a}, {b} and {c}?",
        "{a}、{b}和{c}的最小公倍数是多少？",
        "import math\nprint(math.lcm({a}, {b}, {c}))",
        lambda a, b, c: math.lcm(a, b, c),
    ),
    (
        "What remains when {c} to the power of {a} is divided by {b}{b}?",
        "{c}的{a}次方除以{b}{b}的余数是多少？",
        "print(pow({c}, {a}, {b}{b}))",
        lambda a, b, c: pow(c, a, int(f"{b}{b}")),
    ),
)


def _math(rng: random.Random, language: str, index: int) -> Made:
    english, chinese, program, value = _MATH[index % len(_MATH)]
    shown = {"a": rng.randint(12, 40), "b": rng.randint(3, 11), "c": rng.randint(200, 4000)}
    question = (english if language == "en" else chinese).format(**shown)
    return question, {}, {"number": value(**shown)}, program.format(**shown)


def _table(rng: random.Random, language: str, rows: int) -> tuple[str, str, list[str], list[int]]:
    """Returns names of two columns, and their values."""
    categories, numbers = _COLUMNS[language]
    names = list(map(str, rng.sample(_NAMES[language], 5)))
    column = names if rows == len(names) else [rng.choice(names) for _ in range(rows)]
    values = rng.sample(range(5, 400), rows)
    return rng.choice(categories), rng.choice(numbers), column, values


def _csv(header: list[str], *columns: list[Any]) -> str:
    rows = [header, *map(list, zip(*columns, strict=True))]
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


_READ = "import csv\nrows = list(csv.DictReader(open({file!r}, encoding='utf-8')))\n"
_PLOT = "import matplotlib.pyplot as plt\n"
_DRAWN = {
    "bar": "plt.bar(x, y)\n",
    "line": "plt.plot(x, y)\n",
    "pie": "plt.pie(y, labels=x)\n",
    "scatter": "plt.scatter(x, y)\n",
}
_EASY = {
    "en": "The file {file} has the columns {x} and {y}. Draw a {kind} of {y} by {x}.",
    "zh": "文件{file}有两列：{x}和{y}。请画出{y}关于{x}的{kind}。",
}
_HARD = {
    "en": "Draw a {kind} of the {what} in {file}.",
    "zh": "请根据{file}画出{what}的{kind}。",
}
_WHAT = {
    "sum": {"en": "total {y} of each {x}", "zh": "每个{x}的{y}总和"},
    "mean": {"en": "mean {y} of each {x}", "zh": "每个{x}的平均{y}"},
    "count": {"en": "number of rows of each {x}", "zh": "每个{x}的行数"},
}


def _easy_chart(rng: random.Random, language: str, index: int) -> Made:
    kind = ("bar", "line", "pie", "scatter")[index % 4]
    x, y, names, values = _table(rng, language, 5)
    if kind in ("line", "scatter"):  # two columns of numbers
        x = {"en": "day", "zh": "天数"}[language]
        names = sorted(rng.sample(range(1, 31), 5))
    file = f"table_{rng.randint(100, 999)}.csv"
    question = _EASY[language].format(file=file, x=x, y=y, kind=_KINDS[language][kind])
    of_x = f"[row[{x!r}] for row in rows]"
    of_x = f"list(map(float, {of_x}))" if kind in ("line", "scatter") else of_x
    program = (
        _READ.format(file=file)
        + _PLOT
        + f"x = {of_x}\ny = [float(row[{y!r}]) for row in rows]\n{_DRAWN[kind]}plt.show()"
    )
    gold = {"kind": kind, "labels": list(names), "values": list(values)}
    return question, {file: _csv([x, y], names, values)}, {"chart": gold}, program


def _hard_chart(rng: random.Random, language: str, index: int) -> Made:
    kind, what = ("bar", "pie")[index % 2], ("sum", "mean", "count")[index // 2 % 3]
    x, y, names, values = _table(rng, language, 24)
    groups = {name: [v for n, v in zip(names, values, strict=True) if n == name] for name in names}
    of = {"sum": sum, "mean": lambda v: sum(v) / len(v), "count": len}[what]
    file = f"records_{rng.randint(100, 999)}.csv"
    shown = _WHAT[what][language].format(x=x, y=y)
    question = _HARD[language].format(file=file, what=shown, kind=_KINDS[language][kind])
    written = {"sum": "sum(v)", "mean": "sum(v) / len(v)", "count": "len(v)"}[what]
    program = (
        _READ.format(file=file)
        + _PLOT
        + "groups = {}\nfor row in rows:\n"
        + f"    groups.setdefault(row[{x!r}], []).append(float(row[{y!r}]))\n"
        + f"x, y = list(groups), [{written} for v in groups.values()]\n{_DRAWN[kind]}plt.show()"
    )
    gold = {"kind": kind, "labels": list(groups), "values": [of(v) for v in groups.values()]}
    number = [rng.randint(1, 9) for _ in names]
    files = {file: _csv(["id", x, y], number, names, values)}
    return question, files, {"chart": gold}, program


def _general(rng: random.Random, language: str, index: int) -> Made:
    x, y, names, values = _table(rng, language, 5)
    stem, kind = f"notes_{rng.randint(100, 999)}", index % 4
    is_english = language == "en"
    if kind == 0:
        question = (
            f"What is the mean of {y} in {stem}.csv? Round to two decimal places."
            if is_english
            else f"{stem}.csv中{y}的平均值是多少？保留两位小数。"
        )
        program = _READ.format(file=f"{stem}.csv")
        program += f"print(round(sum(float(row[{y!r}]) for row in rows) / len(rows), 2))"
        gold: Row = {"number": round(sum(values) / len(values), 2)}
        return question, {f"{stem}.csv": _csv([x, y], names, values)}, gold, program
    if kind == 1:
        question = (
            f"Which {x} has the largest {y} in {stem}.csv?"
            if is_english
            else f"{stem}.csv中哪个{x}的{y}最大？"
        )
        program = _READ.format(file=f"{stem}.csv")
        program += f"print(max(rows, key=lambda row: float(row[{y!r}]))[{x!r}])"
        gold = {"text": names[values.index(max(values))]}
        return question, {f"{stem}.csv": _csv([x, y], names, values)}, gold, program
    if kind == 2:
        question = (
            f"The file {stem}.json has a list of objects. What is the total of {y}?"
            if is_english
            else f"文件{stem}.json中有一个对象列表，{y}的总和是多少？"
        )
        rows = [{x: n, y: v} for n, v in zip(names, values, strict=True)]
        program = f"import json\nrows = json.load(open('{stem}.json', encoding='utf-8'))\n"
        program += f"print(sum(row[{y!r}] for row in rows))"
        text = json.dumps(rows, ensure_ascii=False)
        return question, {f"{stem}.json": text}, {"number": sum(values)}, program
    question = (
        f"Sort the lines of {stem}.txt as numbers, smallest first, and write them to sorted.txt."
        if is_english
        else f"把{stem}.txt中的各行按数值从小到大排序，写入sorted.txt。"
    )
    program = (
        f"lines = open('{stem}.txt').read().split()\n"
        "open('sorted.txt', 'w').write('\\n'.join(sorted(lines, key=int)))\nprint('done')"
    )
    ordered = "\n".join(map(str, sorted(values)))
    text = "\n".join(map(str, values)) + "\n"
    return question, {f"{stem}.txt": text}, {"file": "sorted.txt", "content": ordered}, program
