"""Files of samples that were cut, damaged or edited."""

import json

import jax
import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate import likelihood
from tests.helpers import tiny_evaluation as tiny


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """The files of an evaluation that ended."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.evaluate(model, folder)
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def ended(finished, tmp_path):
    for name, content in finished.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def killed(model, folder, monkeypatch):
    """Leaves the partial file of an evaluation that was killed after 4 samples."""
    sample, made = likelihood.sample, []

    def stop(*arguments):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(sample(*arguments))
        return made[-1]

    monkeypatch.setattr(likelihood, "sample", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny.evaluate(model, folder)
    monkeypatch.setattr(likelihood, "sample", sample)
    return folder / "samples/words.jsonl.partial"


def edited(path, line):
    """Makes a wrong verdict right, by hand."""
    lines = path.read_bytes().splitlines(True)
    row = json.loads(lines[line])
    row["correct"] = not row["correct"]
    lines[line] = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    return row["id"]


def test_samples_that_were_edited_are_refused(model, ended):
    path = ended / "samples/words.jsonl"
    name = edited(path, 2)
    with pytest.raises(DataError, match="was changed after it was written") as caught:
        tiny.evaluate(model, ended)
    assert name in caught.value.what and caught.value.where == f"{path} line 3"
    assert f"delete {path}*" in caught.value.fix
    path.write_bytes(
        b"".join(x for i, x in enumerate(path.read_bytes().splitlines(True)) if i != 2)
    )
    tiny.evaluate(model, ended)  # what was deleted is scored again


def test_samples_of_a_killed_evaluation_that_were_edited_are_refused(model, tmp_path, monkeypatch):
    path = killed(model, tmp_path, monkeypatch)
    name = edited(path, 1)
    with pytest.raises(DataError, match="was changed after it was written") as caught:
        tiny.evaluate(model, tmp_path)
    assert name in caught.value.what and caught.value.where == f"{path} line 2"


def test_samples_of_another_evaluation_are_refused(model, ended, tmp_path_factory):
    """Whole files of another model, and single lines that were copied."""
    folder = tmp_path_factory.mktemp("other")
    params = jax.tree.map(lambda leaf: leaf * 0.5, model.params)
    tiny.evaluate(model._replace(params=params), folder)
    path = ended / "samples/words.jsonl"
    own, other = (
        one.read_bytes().splitlines(True) for one in (path, folder / "samples/words.jsonl")
    )
    for number, lines in ((3, [*own[:2], other[2], *own[3:]]), (1, other)):
        path.write_bytes(b"".join(lines))
        with pytest.raises(DataError, match="is of another evaluation") as caught:
            tiny.evaluate(model, ended)
        assert caught.value.where == f"{path} line {number}"


def test_samples_without_a_hash_are_refused(model, ended):
    path = ended / "samples/unanswerable.jsonl"
    first, *rest = path.read_text("utf-8").splitlines(True)
    row = json.loads(first)
    del row["sha256"]
    path.write_text("".join([json.dumps(row) + "\n", *rest]), "utf-8")
    with pytest.raises(DataError, match="has no sha256"):
        tiny.evaluate(model, ended)


@pytest.mark.parametrize("content", [b'{"id": "0", "corr', b"[1]", b"\xff\xfe", b"3"])
def test_damaged_lines_name_our_file_and_how_to_go_on(model, ended, content):
    path = ended / "samples/words.jsonl"
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join([lines[0], content + b"\n", *lines[2:]]))
    with pytest.raises(DataError) as caught:
        tiny.evaluate(model, ended)
    assert caught.value.where == f"{path} line 2"
    assert "the evaluation wrote this file" in caught.value.fix
    assert "download" not in str(caught.value)


@pytest.mark.parametrize("content", [b'{"id": "0", "corr', b"[1]"])
def test_damaged_lines_of_a_killed_evaluation_name_our_file(model, tmp_path, monkeypatch, content):
    path = killed(model, tmp_path, monkeypatch)
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join([lines[0], content + b"\n", *lines[2:]]))
    with pytest.raises(DataError) as caught:
        tiny.evaluate(model, tmp_path)
    assert caught.value.where == f"{path} line 2" and "download" not in str(caught.value)
    path.write_bytes(b"".join([lines[0], *lines[2:3], lines[3][:20]]))  # kill -9: goes on
    tiny.evaluate(model, tmp_path)
