"""A dtype is chosen by what the CPU says of itself."""

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
def test_bfloat16_products(tmp_path, monkeypatch, text, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(cpu_features, "CPU_INFO", path)
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Linux")
    assert cpu_features.has_bfloat16_matmul() is expected


def test_an_unknown_system_has_none(monkeypatch):
    monkeypatch.setattr(cpu_features.platform, "system", lambda: "Darwin")
    assert not cpu_features.has_bfloat16_matmul()
