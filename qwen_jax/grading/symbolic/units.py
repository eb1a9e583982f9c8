"""Units behind a number: cm, square inches, m/s^2 and meters per second squared, as one value.

A unit is the powers of its parts, so cm, cm^2 and cm^3 are three units, and so are m and m/s. No
unit is converted into another: 1 m is not 100 cm.
"""

import re

# The name and its power, in alphabetical order; () is no unit.
Unit = tuple[tuple[str, int], ...]

_WORDS = """
    degree degrees deg radian radians rad percent percentage cent cents dollar dollars usd yuan
    euro euros pound pounds rupee rupees cm mm km m dm nm ft in inch inches foot feet yard yards
    yd mile miles mi meter meters metre metres centimeter centimeters centimetre centimetres
    kilometer kilometers millimeter millimeters second seconds sec s minute minutes min hour hours
    hr hrs day days week weeks month months year years mph kph gram grams g kg kilogram kilograms
    mg lb lbs ounce ounces oz ton tons liter liters litre litres l ml gallon gallons square sq
    cubic unit units people person students student times time way ways ratio points point
"""
UNITS = frozenset(_WORDS.split())
DEGREE = (("degree", 1),)
PERCENT = (("percent", 1),)
BETWEEN = frozenset({"per", "squared", "cubed"})  # words between units and behind them
_ONE_NAME = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "kilometer": "km", "meter": "m",
    "metre": "m", "inche": "in", "inch": "in", "feet": "foot", "ft": "foot", "yd": "yard",
    "mi": "mile", "sec": "second", "s": "second", "min": "minute", "hr": "hour", "h": "hour",
    "gram": "g", "kilogram": "kg", "lb": "pound", "oz": "ounce", "liter": "l", "litre": "l",
    "deg": "degree", "usd": "dollar", "people": "person", "rad": "radian", "percentage": "percent",
}  # fmt: skip
_RATIOS = {"mph": (("hour", -1), ("mile", 1)), "kph": (("hour", -1), ("km", 1))}
_BEFORE = {"square": 2, "sq": 2, "cubic": 3}  # square inches
_BEHIND = {"squared": 2, "cubed": 3}  # inches squared
_SKIPPED = frozenset({"the", "of", "a", "an"})
_PART = re.compile(r"[a-z]+|/|\^ ?\{? ?-?\d")
_SHORT = r"(?:[kcmd]?m|[km]?g|sec|s|min|hr|hour|h|miles?|mi|ft|feet|ml|l)(?:\^\{?[23]\}?)?"
# Letters behind a space: `5 m/s` is a speed, while `5m/s` may be 5 times m, divided by s.
_RATIO = re.compile(rf"(?<=\d) +({_SHORT}/{_SHORT})(?![\w^])")


def read(text: str) -> Unit:
    """Returns the unit that the words are.

    Example:
      >>> read("square inches"), read("m/s^2"), read("meters per second squared")
      ((('in', 2),), (('m', 1), ('second', -2)), (('m', 1), ('second', -2)))
    """
    powers: dict[str, int] = {}
    sign, before, last = 1, 1, ""
    for part in _PART.findall(text.lower()):
        if part in ("per", "/"):
            sign = -1
        elif part in _BEFORE:
            before = _BEFORE[part]
        elif part in _BEHIND or part.startswith("^"):
            if last:
                powers[last] *= _BEHIND.get(part) or int(part.lstrip("^ {"))
        elif part in _RATIOS:
            powers |= _RATIOS[part]
        elif part not in _SKIPPED:
            last = _name(part)
            powers[last] = powers.get(last, 0) + sign * before
            before = 1
    return tuple(sorted(powers.items()))


def marked(text: str) -> str:
    r"""Returns the text with `5 m/s` as `5 \text{m/s}`."""
    return _RATIO.sub(r"\\text{\1}", text)


def _name(word: str) -> str:
    """Returns one name for the spellings of a unit: inches and inch are in."""
    singular = word[:-1] if len(word) > 3 and word.endswith("s") else word
    return _ONE_NAME.get(singular, singular)
