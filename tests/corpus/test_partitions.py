"""Sources are parsed, listed and split into partitions; tasks that fail."""

import errno
import os
import pathlib

import pytest

pa = pytest.importorskip("pyarrow")

from qwen_jax import exit_codes
from qwen_jax.corpus import partitions, pipeline, source_files
from qwen_jax.corpus.engine import run_tasks
from qwen_jax.corpus.sources.read import Read
from qwen_jax.errors import ConfigError, DataError
from tests.helpers.corpus_files import rows_of


@pytest.mark.parametrize(
    "text, name, kind, path",
    [
        ("data/mine", "mine", None, "data/mine"),
        ("a=web:crawl/", "a", "web", "crawl"),
        ("code:repos", "repos", "code", "repos"),
        ("x/b.jsonl.gz", "b", None, "x/b.jsonl.gz"),
        ("web:s3://bucket/c", "c", "web", "s3://bucket/c"),
        ("s3://b/x=1", "x=1", None, "s3://b/x=1"),
        ("python:docs", "python-docs", "documentation", "python:docs"),
        (".", pathlib.Path.cwd().name.split(".")[0], None, "."),
        ("a/.cache", "cache", None, "a/.cache"),
    ],
)
def test_parse_reads_name_kind_and_path(text, name, kind, path):
    assert partitions.parse(text) == partitions.Source(name, kind, path)


def test_make_partitions_refuses_invalid_sources():
    for given, message in (
        ((), "no sources"),
        (("a/x", "b/x"), "2 sources are named"),
        (("web:",), "no path"),
        (("/",), "not a valid source name"),
        (("..=a",), "not a valid source name"),
    ):
        with pytest.raises(ConfigError, match=message):
            partitions.make_partitions(given, partition_mb=1)


def test_read_gives_code_its_language_license_and_path(tmp_path):
    for name, text in {
        "one/LICENSE": "Apache License",
        "one/a.py": "x = 1\n",
        "one/b.c": "int x;\n",
        "one/logo.png": "",
        "one/.git/config": "no",
        "two/c.rs": "fn main() {}\n",
        "two/README": "read me",
    }.items():
        (tmp_path / "repos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repos" / name).write_text(text)
    result = pipeline.run([f"code:{tmp_path}/repos"], [Read()], str(tmp_path / "out"), workers=0)
    assert [(row["path"], row["language"], row["license"]) for row in rows_of(result)] == [
        ("one/a.py", "python", "Apache-2.0"),
        ("one/b.c", "c", "Apache-2.0"),
        ("two/c.rs", "rust", None),
    ]
    _, record = partitions.make_partitions([f"code:{tmp_path}/repos"], partition_mb=1)
    assert record["repos"]["passed_over"] == {".png": 1, "none": 2}


def test_make_partitions_reports_links(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.py").write_text("x = 1")
    (tmp_path / "in/gone.py").symlink_to("nowhere")
    (tmp_path / "in/round").symlink_to(tmp_path)
    with pytest.raises(DataError, match="2 of 3 files.*broken link, link to a folder"):
        partitions.make_partitions([f"{tmp_path}/in"], partition_mb=1)
    log = []
    result = pipeline.run(
        [f"code:{tmp_path}/in"], [Read()], str(tmp_path / "out"), workers=0, log=log.append
    )
    assert log[0] == "in: skipped broken link 1, link to a folder 1"
    assert len(rows_of(result)) == 1


def test_run_refuses_an_output_inside_a_source(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match="inside a source"):
        pipeline.run([str(tmp_path)], [Read()], str(tmp_path / "x/out"), workers=0)
    assert not (tmp_path / "x").exists()


def test_make_partitions_groups_small_files_and_splits_large_ones(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("x" * 400)
    (tmp_path / "9.jsonl").write_text('{"text": "y"}\n' * 200)
    made, _ = partitions.make_partitions([str(tmp_path)], partition_mb=0.001)
    assert [len(partition) for partition in made] == [2, 2, 1, 1, 1, 1]
    assert [(part.begin, part.end) for partition in made for part in partition][-3:] == [
        (0, 1000),
        (1000, 2000),
        (2000, 2800),
    ]


def test_listing_reads_remote_files_through_daft(tmp_path, monkeypatch):
    """Covers the path of object stores with the file:// scheme, which needs no store."""
    pytest.importorskip("daft")
    monkeypatch.setattr(source_files, "REMOTE", ("file://",))
    (tmp_path / "in/b").mkdir(parents=True)
    (tmp_path / "in/a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "in/b/c.txt").write_text("two")
    result = pipeline.run([f"file://{tmp_path}/in"], [Read()], str(tmp_path / "out"), workers=0)
    assert [(row["path"], row["text"]) for row in rows_of(result)] == [
        ("a.jsonl@0", "one"),
        ("b/c.txt", "two"),
    ]
    with pytest.raises(DataError):
        source_files.listing(f"file://{tmp_path}/gone")
    one = pipeline.run(
        [f"file://{tmp_path}/in/a.jsonl"], [Read()], str(tmp_path / "one"), workers=0
    )
    assert [(row["path"], row["text"]) for row in rows_of(one)] == [("a.jsonl@0", "one")]


def test_open_binary_raises_oserror_if_a_remote_file_shrinks(tmp_path, monkeypatch):
    pytest.importorskip("daft")
    monkeypatch.setattr(source_files, "REMOTE", ("file://",))
    path = tmp_path / "a.parquet"
    path.write_bytes(bytes(20 << 20))
    with source_files.open_binary(f"file://{path}") as file:
        assert len(file.read(100)) == 100
        os.truncate(path, 50)
        with pytest.raises(
            OSError
        ) as caught:  # with an errno, unlike pyarrow's errors for damaged data
            file.seek(10 << 20)
            file.read()
    assert caught.value.errno and str(path) in caught.value.filename


def test_run_tasks_shortens_a_long_task_in_its_error():
    with pytest.raises(DataError) as caught:
        list(run_tasks(lambda task: open("/nowhere/at/all"), [tuple(range(10_000))], workers=0))
    assert "(0, 1, 2" in caught.value.where and len(caught.value.where) < 1000


def fails_on_three(task):
    if task == 3:
        raise OSError(28, "No space left on device", "somewhere")
    return task * 2


def test_run_tasks_keeps_the_fix_of_an_error():
    def work(task):
        raise DataError("it is not installed.", "a stage", "pip install it.")

    with pytest.raises(DataError, match=r"it is not installed \(a stage; pip install it\)"):
        list(run_tasks(work, [1], workers=0))


def test_run_tasks_finishes_the_others_if_one_fails():
    done = []
    with pytest.raises(DataError, match="No space left on device: somewhere"):
        for task, result in run_tasks(fails_on_three, range(5), workers=0):
            done.append((task, result))
    assert done == [(0, 0), (1, 2), (2, 4), (4, 8)]


@pytest.mark.parametrize("number, code", [(28, 73), (5, 74), (30, 1)])
def test_run_tasks_has_the_exit_code_of_the_failure(number, code):
    def work(task):
        raise OSError(number, os.strerror(number), "somewhere")

    with pytest.raises(DataError) as caught:
        list(run_tasks(work, [1], workers=0))
    assert exit_codes.of(caught.value) == code


def test_listing_escapes_the_pattern_of_an_object_store(monkeypatch):
    """Daft takes a pattern; only an address of the web has a query."""
    patterns = []

    class Engine:
        def from_glob_path(self, pattern):
            patterns.append(pattern)
            raise OSError("nothing matches")

    monkeypatch.setattr(source_files, "daft", Engine)
    for path, pattern in (
        ("s3://b/plain", "s3://b/plain"),
        ("s3://b/a[1]*?{x}\\y", r"s3://b/a\[1\]\*\?\{x\}\\y"),
        ("https://h/a?b=1", "https://h/a?b=1"),
    ):
        with pytest.raises(DataError, match="cannot list files"):
            source_files.listing(path)
        assert patterns[-2:] == [f"{pattern}/**", pattern]


def test_listing_finds_files_through_an_escaped_pattern(tmp_path, monkeypatch):
    pytest.importorskip("daft")
    folder = tmp_path / "a[1]*?{x,y}\\z %41#"
    folder.mkdir()
    (folder / "f[2].txt").write_text("text")
    monkeypatch.setattr(source_files, "REMOTE", (str(tmp_path),))
    (found,) = source_files._remote_listing(str(folder))
    assert found.size == 4


def test_listing_does_not_leave_out_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b").mkdir()
    scandir = os.scandir

    def failing(folder):
        if os.fspath(folder).endswith("b"):
            raise OSError(errno.EIO, "Input/output error", os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Input/output"):
        source_files.listing(str(tmp_path))


def test_parse_names_an_unknown_kind():
    with pytest.raises(ConfigError, match="there is no kind 'html'"):
        partitions.parse("mine=html:nowhere/pages")
