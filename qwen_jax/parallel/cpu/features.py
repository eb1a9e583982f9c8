"""CPU features of this machine on which settings depend."""

import hashlib
import pathlib
import platform
import re

CPU_INFO = pathlib.Path("/proc/cpuinfo")
# Instruction sets with bfloat16 matmuls: x86 (Cooper Lake, Zen 4 and later) and Arm.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


def has_bfloat16_matmul() -> bool:
    """Returns whether bfloat16 matmuls are faster than float32 ones here; False if unknown.

    Without such instructions, XLA:CPU converts every operand, and a step takes longer than in
    float32.
    """
    if platform.system() != "Linux" or not CPU_INFO.exists():
        return False
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    return line is not None and not {*BFLOAT16}.isdisjoint(line[1].split())


def cpu_digest() -> str:
    """Returns 12 characters that identify the CPU's model and features."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = re.findall(r"^(?:vendor_id|model name|flags|Features)\s*:.*$", text, re.MULTILINE)
    return hashlib.sha256("\n".join(sorted(set(lines))).encode()).hexdigest()[:12]
