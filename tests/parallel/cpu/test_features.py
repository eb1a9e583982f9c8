"""The CPU features that decide the default dtype."""

import pytest

from qwen_jax.parallel.cpu import features as cpu_features


@pytest.mark.parametrize(
    "text, expected",
    [
        ("processor : 0\nflags\t\t: fpu sse avx2 avx512f avx512_bf16 amx_tile\n", True),
        ("processor : 0\nflags\t\t: fpu sse avx2 avx512f\nbugs\t\t: bf16\n", False),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("", False),
    ],
)
def test_has_bfloat16_matmul_by_cpu_info(tmp_path, monkeypatch, text, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(cpu_features, "CPU_INFO", path)
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Linux")
    assert cpu_features.has_bfloat16_matmul() is expected


def test_has_bfloat16_matmul_is_false_on_unknown_systems(monkeypatch):
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Darwin")
    assert not cpu_features.has_bfloat16_matmul()
