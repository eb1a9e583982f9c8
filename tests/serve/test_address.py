"""The server's API key."""

import pytest

from qwen_jax.errors import ConfigError
from qwen_jax.serve.address import read_key


def test_read_key_of_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text("secret\n")
    assert read_key("@~/key") == read_key(f"@{tmp_path}/key") == "secret"
    assert read_key("~/key") == "~/key" and read_key(None) is None
    for name in ("@~/other", "@", ""):
        with pytest.raises(ConfigError) as refused:
            read_key(name)
        assert refused.value.where == "--api_key"
