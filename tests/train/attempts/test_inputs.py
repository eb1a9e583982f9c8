"""The inputs of a run, identified by content and compared when it resumes."""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest

from qwen_jax.errors import ConfigError, QwenJaxError
from qwen_jax.train.attempts import inputs
from tests.helpers.adding_run import Adding, noise
from tests.helpers.tiny_checkpoint import TOKENIZER


def events_of(recorded, found, allowed=()):
    logged = []
    inputs.compare(
        recorded,
        found,
        may_change=lambda role: role in allowed,
        log=lambda event, **details: logged.append((event, details["name"])),
    )
    return logged


@pytest.fixture
def files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    return [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]


def test_of_settings_identifies_files_by_content_and_order(files, tmp_path):
    of = lambda *paths: inputs.of_settings({"data.pairs": list(paths)}, None)  # noqa: E731
    recorded = of(*files)
    assert events_of(recorded, of(*files)) == []
    moved = shutil.copy(files[0], tmp_path / "c.jsonl")
    assert events_of(recorded, of(moved, files[1])) == [("moved", "data.pairs")]
    for other in ((files[1], files[0]), (files[0],), (*files, files[0]), ()):
        with pytest.raises(ConfigError, match="--data.pairs"):
            events_of(recorded, of(*other))
    status = os.stat(files[0])
    pathlib.Path(files[0]).write_text(json.dumps({"text": "c"}) + "\n")  # of the same size
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ConfigError, match=r"the contents of .*a\.jsonl have changed\."):
        events_of(recorded, of(*files))
    assert events_of(recorded, of(*files), {"data.pairs"}) == [("input", "data.pairs")]


def step(path, number, digest="d"):
    return inputs.Input("init_from", path, digest, number)


@pytest.mark.parametrize(
    "old, new, shown",
    [
        ([step("/a", None)], [step("/b", None, "e")], "--init_from: was '/a', now '/b'."),
        ([step("/a", 10)], [step("/a", 20)], "--init_from: was '/a step 10', now '/a step 20'."),
        (
            [step("/a", 10)],
            [step("/a", 10, "e")],
            "--init_from: the contents of /a step 10 have changed.",
        ),
        (
            [inputs.Input("tokenizer", "", "d")],
            [inputs.Input("tokenizer", "/t.tiktoken", "e")],
            "--tokenizer: was \"the model's tokenizer\", now '/t.tiktoken'.",
        ),
        (
            [inputs.Input("data.sources", "/w", "d=0.5")],
            [inputs.Input("data.sources", "/w", "d=0.6")],
            "--data.sources: was '/w=0.5', now '/w=0.6'.",
        ),
        (
            [inputs.Input("data.pairs", "/p", "d")],
            [inputs.Input("data.pairs", name, "d") for name in ("/p", "/q")],
            "--data.pairs: was '/p', now ['/p', '/q'].",
        ),
        (
            [inputs.Input("data.pairs", "/p", "d", bytes=3)],
            [inputs.Input("data.pairs", "/p", "e", bytes=4)],
            "--data.pairs: the contents of /p have changed (4 bytes, was 3).",
        ),
    ],
)
def test_compare_names_the_path_that_changed(old, new, shown):
    with pytest.raises(ConfigError) as refused:
        events_of(old, new)
    assert refused.value.what == f"the inputs of this run have changed since it started: {shown}"


def test_of_settings_reuses_the_digest_of_a_large_file_that_has_not_changed(files, monkeypatch):
    monkeypatch.setattr(inputs, "_LARGE_BYTES", 1)
    settings = {"data.prompts": files}
    recorded = inputs.of_settings(settings, None)
    monkeypatch.setattr(inputs, "_sha256", lambda path: "read again")
    assert inputs.of_settings(settings, None, recorded) == recorded
    os.utime(files[1], (1, 1))
    digests = [each.digest for each in inputs.of_settings(settings, None, recorded)]
    assert digests == [recorded[0].digest, "read again"]


def test_of_settings_identifies_shards_by_manifest_and_weight(toy_text, tmp_path):
    copied = shutil.copytree(toy_text, tmp_path / "with=equals" / "train")
    of = lambda source: inputs.of_settings({"data.sources": [source]}, None)  # noqa: E731
    assert events_of(of(f"{toy_text}=0.5"), of(f"{copied}=0.5")) == [("moved", "data.sources")]
    with pytest.raises(ConfigError, match="--data.sources"):
        events_of(of(f"{toy_text}=0.5"), of(f"{toy_text}=0.6"))
    assert of(str(copied))[0].path == str(copied)  # no weight, though its parent has an "="
    manifest = copied / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record | {"sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="--data.sources"):
        events_of(of(f"{toy_text}=0.5"), of(f"{copied}=0.5"))


def test_of_settings_identifies_the_tokenizer_and_reward_functions(tmp_path, monkeypatch):
    (found,) = inputs.of_settings({"data.tokenizer": None}, TOKENIZER)
    assert found == inputs.Input("data.tokenizer", "", TOKENIZER.fingerprint)
    (tmp_path / "my_rewards.py").write_text("def reward(prompts, completions): return [0]")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"reward_functions": ["my_rewards:reward"], "tokenizer": "a.tiktoken"}
    before = inputs.of_settings(settings, TOKENIZER)
    (tmp_path / "my_rewards.py").write_text("def reward(prompts, completions): return [1]")
    after = inputs.of_settings(settings, TOKENIZER)
    assert events_of(before, after) == [("input", "reward_functions")]
    other = [dataclasses.replace(each, digest="0") for each in after]
    with pytest.raises(ConfigError, match="--tokenizer") as caught:
        events_of(before, other)
    assert "reward_functions" not in caught.value.what


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"inputs": 3}', '{"inputs": [{"a": 1}]}'])
def test_read_names_a_damaged_record(tmp_path, text):
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(QwenJaxError) as caught:
        inputs.read(tmp_path)
    assert "inputs.json" in caught.value.where and "delete it" in caught.value.fix


def with_sources(folder, *paths):
    a = Adding(folder, noise(), num_steps=12, save_every=12)
    data = dataclasses.replace(a.config.data, sources=paths)
    a.config = dataclasses.replace(a.config, data=data)
    return a


def test_run_compares_its_inputs_and_keeps_what_it_recorded(tmp_path, toy_text):
    source = shutil.copytree(toy_text, tmp_path / "text")
    a = with_sources(tmp_path / "run", str(source))
    a.run()
    written = (a.folder / "inputs.json").read_bytes()
    assert [each["role"] for each in json.loads(written)["inputs"]] == ["data.sources"]
    moved = with_sources(a.folder, str(shutil.copytree(source, tmp_path / "moved")))
    moved.run()
    assert moved.names()[-3:] == ["resume", "moved", "end"]
    assert any("--data.sources has moved, with the same content" in each for each in moved.shown)
    manifest = source / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sha256": "0"}))
    before = (a.folder / "inputs.json").read_bytes()
    with pytest.raises(ConfigError, match="--data.sources"):
        a.run()
    assert (a.folder / "inputs.json").read_bytes() == before
    # A run of an earlier version records what it finds.
    (a.folder / "inputs.json").unlink()
    moved.run()
    assert moved.names()[-3:] == ["resume", "inputs", "end"]
    with pytest.raises(ConfigError, match="--data.sources"):
        a.run()


def test_run_logs_other_versions(tmp_path):
    a = Adding(tmp_path, noise(), num_steps=12, save_every=12)
    a.run()
    path = tmp_path / "versions.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"jax": "0.1", "devices": "9 x tpu"}))
    a.run()
    (event,) = [each for each in a.events() if each["event"] == "versions"]
    assert len(event["changed"]) == 1 and event["changed"][0].startswith("jax 0.1 -> ")
    assert json.loads(path.read_text())["jax"] != "0.1"
