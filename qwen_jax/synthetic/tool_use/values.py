"""What tools are called and what people ask them about: one set for training, another for tests.

Names are made of random syllables and differ in every item, so a model has to read descriptions:
it cannot memorize names. Syllables, cities, things and people of the two splits have nothing in
common.
"""

import random
from collections.abc import Mapping, Sequence

SPLITS = ("train", "test")
LANGUAGES = ("en", "zh")
_SYLLABLES = {
    "train": "ba bel cor dan el fi gar hum in jo kal lem mor nu os pra quin ras".split(),
    "test": "vex zor wim tuk yal shu xen plo dri gwe fyn umb".split(),
}
_VALUES: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = {
    "city": {
        "train": {
            "en": ("Lima", "Oslo", "Cairo", "Hanoi", "Quito", "Turin", "Perth", "Lyon", "Kyoto"),
            "zh": ("北京", "广州", "成都", "杭州", "武汉", "西安", "南京", "天津", "苏州"),
        },
        "test": {
            "en": ("Bergen", "Dakar", "Osaka", "Tunis", "Porto", "Riga", "Salta", "Ghent"),
            "zh": ("昆明", "青岛", "厦门", "长沙", "大连", "贵阳", "兰州", "合肥"),
        },
    },
    "thing": {
        "train": {
            "en": ("lamp", "kettle", "bicycle", "tent", "blanket", "mirror", "clock", "jacket"),
            "zh": ("台灯", "水壶", "自行车", "帐篷", "毯子", "镜子", "闹钟", "外套"),
        },
        "test": {
            "en": ("umbrella", "backpack", "guitar", "stove", "carpet", "helmet", "violin"),
            "zh": ("雨伞", "背包", "吉他", "炉子", "地毯", "头盔", "小提琴"),
        },
    },
    "person": {
        "train": {
            "en": ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo"),
            "zh": ("王伟", "李娜", "张敏", "刘洋", "陈静", "杨帆", "赵磊", "黄丽"),
        },
        "test": {
            "en": ("Ingrid", "Jorge", "Kamala", "Leon", "Mirela", "Nadir", "Odile"),
            "zh": ("周涛", "吴霞", "徐强", "孙悦", "胡斌", "朱琳", "高翔"),
        },
    },
    "topic": {
        "train": {
            "en": ("tides", "bridges", "bees", "glass", "opera", "volcanoes", "maps"),
            "zh": ("潮汐", "桥梁", "蜜蜂", "玻璃", "戏曲", "火山", "陶瓷"),
        },
        "test": {
            "en": ("comets", "orchids", "canals", "clocks", "whales", "silk"),
            "zh": ("彗星", "兰花", "运河", "鲸鱼", "丝绸", "古琴"),
        },
    },
}


def stem(rng: random.Random, split: str) -> str:
    """Returns a made-up word of two or three syllables."""
    return "".join(rng.choices(_SYLLABLES[split], k=rng.choice((2, 3))))


def value(rng: random.Random, kind: str, split: str, language: str) -> str | int:
    """Returns a value of a parameter, as the question has it.

    Args:
      kind: "city", "thing", "person", "topic", "date" or "count".
    """
    if kind == "count":
        return rng.randint(2, 98)
    if kind == "date":
        year, month, day = rng.randint(2021, 2029), rng.randint(1, 12), rng.randint(1, 28)
        return f"{year}-{month:02}-{day:02}"
    return rng.choice(_VALUES[kind][split][language])
