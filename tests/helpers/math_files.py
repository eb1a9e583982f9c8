"""Problems of ours in the files of MATH's distribution: SPLIT/SUBJECT/NUMBER.json."""

import json
import pathlib

# Subject, number, level, problem, solution.
PROBLEMS = (
    ("algebra", 1, "Level 1", "What is $2 + 2$?", r"It is $\boxed{4}$."),
    ("algebra", 10, "Level 5", "Solve $2x = 5$.", r"So $x = \boxed{\frac{5}{2}}$."),
    ("algebra", 9, "Level ?", "Which is larger, $1$ or $0$?", r"\boxed{1}, since $1 > 0$."),
    (
        *("counting_and_probability", 3, "Level 2", "A fair coin is thrown. How likely is heads?"),
        r"One of two sides: \[\boxed{\frac12}.\]",
    ),
    ("geometry", 4, "Level 3", "A square has side 3 cm. What is its area?", r"$\boxed{9}$ cm$^2$"),
    ("intermediate_algebra", 5, "Level 4", "Write $[0,1)$.", r"It is $\boxed{[0,1)}$."),
    ("number_theory", 6, "Level 5", "Name a prime over 12.", r"$\boxed{13}$, not $\boxed{12}$?"),
    ("prealgebra", 7, "Level 1", "Write 1000 with a comma.", r"$\boxed{1,\!000}$"),
    ("precalculus", 8, "Level 2", r"What is $\sin 0$?", r"\fbox{no} but $\boxed{0}$"),
)


def write_math(folder: pathlib.Path) -> int:
    """Writes test/ and a problem of train/; returns the number of test problems."""
    rows = [("test", *row) for row in PROBLEMS] + [("train", "algebra", 2, *PROBLEMS[0][2:])]
    for split, subject, number, level, problem, solution in rows:
        path = folder / split / subject / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"problem": problem, "level": level, "type": subject.title(), "solution": solution}
        path.write_text(json.dumps(row), encoding="utf-8")
    return len(PROBLEMS)
