"""The cache of Go's standard library, made by a script that stands in for the toolchain."""

import pytest

from qwen_jax.sandbox import go_cache


@pytest.fixture
def toolchain(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(script: str) -> str:
        path = tmp_path / "sdk/bin/go"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_prepare_makes_a_readable_cache_once(toolchain):
    go = toolchain('umask 077; mkdir "$GOCACHE/00"; echo "$GOROOT $*" > "$GOCACHE/00/a"')
    go_cache.prepare(go)
    made = go_cache.folder(go)
    text = (made / "00/a").read_text()
    assert text.endswith("/sdk build std\n")
    assert [path.stat().st_mode & 0o777 for path in (made, made / "00", made / "00/a")] == [
        0o755, 0o755, 0o644
    ]  # fmt: skip
    (made / "00/a").write_text("kept")
    go_cache.prepare(go)
    assert (made / "00/a").read_text() == "kept"


def test_prepare_leaves_nothing_of_a_toolchain_that_fails(toolchain):
    go = toolchain('touch "$GOCACHE/a"; exit 1')
    go_cache.prepare(go)
    assert list(go_cache.folder(go).parent.iterdir()) == []
