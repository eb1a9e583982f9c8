"""experiments.prepare_data: smoke run, recipes, flags and refused settings."""

import bz2
import dataclasses
import errno
import gzip
import json
import lzma
import random
import re

import pytest

pytest.importorskip("daft")
pytest.importorskip("py3langid")
pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from experiments import prepare_data, train_filter
from qwen_jax.cli import flags
from qwen_jax.config import DataConfig
from qwen_jax.corpus.output.vocabulary import Vocabulary
from qwen_jax.data import shards
from qwen_jax.errors import ConfigError, DataError, TokenizerError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train import pretrain
from qwen_jax.utils.jsonl import write_rows
from tests.helpers import tiny_checkpoint


def test_prepare_data_smoke(tmp_path, capsys):
    prepare_data.main(
        dataclasses.replace(prepare_data.SMOKE, output=str(tmp_path / "out"), eval_fraction=0.2)
    )
    made = shards.open_shards(tmp_path / "out/shards/corpus/train")
    assert made.documents > 20 and made.vocab_size > 600
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert list(counts)[0] == "01-read" and counts["02-language"]["counted"]["language"]
    assert (tmp_path / "out/review.html").exists() and (tmp_path / "out/mixture.png").exists()
    shown = capsys.readouterr().out
    assert f"add --recipe=smoke --model.vocab_size={-(-made.vocab_size // 128) * 128}\n" in shown
    assert re.search(
        r"\.pretrain --data.sources=\S+/train --data.eval\S+/eval --run_dir=runs/out", shown
    )


def test_a_hint_names_the_share_of_documents_that_the_filters_leave():
    def counts(*documents):
        return {f"0{i}": {"kept": {"documents": n}} for i, n in enumerate(documents, 1)}

    assert prepare_data.loss(counts(10, 8, 5)) == ""
    assert "only 4 of 10 documents are left" in prepare_data.loss(counts(10, 8, 4))
    assert prepare_data.loss(counts(10)) == ""  # nothing but reading


def test_unfiltered_keeps_everything(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / f"in/{name}.txt").write_text("the same short text " * 50)
    Tokenizer({bytes([i]): i for i in range(256)}).save(tmp_path / "bytes.tiktoken")
    _, config = flags.parse(
        "",
        {"unfiltered": prepare_data.UNFILTERED},
        [
            "x",
            f"--sources=mine={tmp_path}/in",
            f"--output={tmp_path}/out",
            "--workers=0",
            f"--tokenizer={tmp_path}/bytes.tiktoken",
            "--eval_fraction=0",
        ],
    )
    prepare_data.main(config)
    assert shards.open_shards(tmp_path / "out/shards/mine/train").documents == 3


def test_prepare_data_reports_that_every_document_was_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("too short")
    config = dataclasses.replace(
        prepare_data.RECIPE,
        sources=(str(tmp_path / "a.txt"),),
        output=str(tmp_path / "out"),
        workers=0,
    )
    with pytest.raises(DataError, match="rejected every document"):
        prepare_data.main(config)


@pytest.mark.parametrize("row", ["", '{"messages": [{"role": "user", "content": "Hi"}]}\n'])
def test_prepare_data_names_files_without_text(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(DataError, match="no text was found(.|\n)*text_field(.|\n)*experiments.sft"):
        prepare_data.main(
            parsed(f"--sources={tmp_path}/a.jsonl", f"--output={tmp_path}/out", "--eval_fraction=0")
        )


def test_prepare_data_names_files_that_are_truncated_or_compressed_twice(tmp_path, capsys):
    text = b"".join(b'{"text": "line %d"}\n' % i for i in range(500))
    whole = pyarrow.compress(text, codec="zstd", asbytes=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/b.jsonl.gz").write_bytes(gzip.compress(gzip.compress(text)))
    (tmp_path / "in/c.txt.xz").write_bytes(lzma.compress(bz2.compress(text)))
    with pytest.raises(DataError, match="no text was found in the files: 3 damaged_file"):
        prepare_data.main(parsed(f"--sources={tmp_path}/in", f"--output={tmp_path}/out"))
    shown = capsys.readouterr().out
    assert "a.jsonl.zst (Truncated compressed stream)" in shown
    assert "b.jsonl.gz (compressed twice (gzip in gzip): decompress it once)" in shown
    assert "c.txt.xz (compressed twice (bzip2 in xz): decompress it once)" in shown


def test_prepare_data_holds_out_a_document_of_each_source(tmp_path, capsys):
    tokenizer = byte_tokenizer(tmp_path / "bytes.tiktoken")
    for name, count in (("many", 184), ("two", 2), ("one", 1)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(count)])
    prepare_data.main(
        parsed(
            f"--sources={tmp_path}/many.jsonl,{tmp_path}/two.jsonl,{tmp_path}/one.jsonl",
            f"--output={tmp_path}/out",
            f"--tokenizer={tokenizer}",
            "--eval_fraction=0.0001",
        )
    )
    folder = tmp_path / "out/shards"
    assert [shards.open_shards(folder / name / "eval").documents for name in ("many", "two")] == [
        1,
        1,
    ]
    assert shards.open_shards(folder / "one/train").documents == 1
    printed = capsys.readouterr().out
    assert "one: no held-out documents, because it has only one document" in printed
    evals = f"--data.eval_sources={folder}/many/eval,{folder}/two/eval"
    assert f"{evals} --run_dir=runs/out\n" in printed
    with pytest.raises(DataError, match="the shard folder does not exist"):
        pretrain.tokenizer_of(DataConfig(sources=(f"{tmp_path}/none=3",)))
    with pytest.raises(DataError, match="this is a file, not a folder of token shards"):
        pretrain.tokenizer_of(DataConfig(sources=(f"{tmp_path}/many.jsonl",)))


def parsed(*given):
    return flags.parse("", {"unfiltered": prepare_data.UNFILTERED}, ["x", "--workers=0", *given])[1]


def test_former_flags_and_recipe_still_work(capsys):
    config = parsed("--base=b.tiktoken", "--num_new=7", "--vocabulary_mb=3", "--vocab_size=300")
    assert config.vocabulary == Vocabulary(base="b.tiktoken", num_new=7, megabytes=3, size=300)
    assert "--vocab_size; it is now --vocabulary.size" in capsys.readouterr().err
    config = parsed("--filters.personal=false", "--nolanguages", "--mixture.most_epochs=6")
    assert not config.filters.mask_pii and not config.identify_language
    assert config.mixture.max_epochs == 6
    assert len(capsys.readouterr().err.splitlines()) == 3  # one warning each
    given = ["x", "--recipe=plain"]
    assert flags.parse("", prepare_data.RECIPES, given) == ("unfiltered", prepare_data.UNFILTERED)
    assert "--recipe=plain; it is now" in capsys.readouterr().err


def byte_tokenizer(path):
    Tokenizer({bytes([i]): i for i in range(256)}).save(path)
    return path


def test_mixture_flags_set_weights_and_max_epochs(tmp_path, capsys):
    tokenizer = byte_tokenizer(tmp_path / "bytes.tiktoken")
    for name, size in (("wiki", 100), ("chats", 300)):
        (tmp_path / f"{name}.txt").write_text("x" * size)
    given = (
        f"--sources={tmp_path}/wiki.txt,instruction:{tmp_path}/chats.txt",
        f"--output={tmp_path}/out",
        f"--tokenizer={tokenizer}",
        "--eval_fraction=0",
        "--mixture.weights=wiki=5",
        "--mixture.instructions=chats",
    )
    with pytest.raises(ConfigError, match="(?s)more than 4 times.*--mixture.allow_epochs=wiki"):
        prepare_data.main(parsed(*given))
    prepare_data.main(parsed(*given, "--mixture.allow_epochs=wiki"))
    assert "Instruction data: 37.3%" in capsys.readouterr().out  # 301 of 5 x 101 + 301
    assert shards.open_shards(tmp_path / "out/shards/wiki/train").documents == 5
    with pytest.raises(ConfigError, match="(?s)more than 6 times"):
        prepare_data.main(parsed(*given, "--mixture.weights=wiki=7", "--mixture.max_epochs=6"))


def test_train_filter_model_rejects_strange_text(tmp_path, capsys):
    rng = random.Random(0)
    tokenizer = byte_tokenizer(tmp_path / "bytes.tiktoken")

    words = "the old ship sailed home with many men and little bread".split()

    def text():
        return " ".join(rng.choices(words, k=60))

    write_rows(tmp_path / "clean.jsonl", [{"text": text()} for _ in range(400)])
    train_filter.main(
        train_filter.Config(
            clean=(f"{tmp_path}/clean.jsonl",),
            tokenizer=str(tokenizer),
            output=f"{tmp_path}/en.npz",
            perplexity=train_filter.PerplexityRules(strangest=0.02, easiest=0.02),
        )
    )
    assert "above; the median has" in capsys.readouterr().out
    strange = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=300))
    write_rows(
        tmp_path / "in.jsonl", [{"text": each, "language": "en"} for each in (text(), strange)]
    )
    prepare_data.main(
        parsed(
            f"--sources={tmp_path}/in.jsonl",
            f"--output={tmp_path}/out",
            f"--tokenizer={tokenizer}",
            "--eval_fraction=0",
            f"--filters.perplexity=en={tmp_path}/en.npz",
        )
    )
    counts = json.loads((tmp_path / "out/counts.json").read_text())["02-perplexity"]
    assert counts["kept"]["documents"] == 1
    assert counts["rejected"]["too_strange"]["documents"] == 1


def test_filters_checkpoint_scores_and_rejects(tmp_path):
    folder = tiny_checkpoint.write(tmp_path / "model")
    write_rows(tmp_path / "in.jsonl", [{"text": "quiet" * 9}, {"text": "!?!?!" * 9}])
    prepare_data.main(
        parsed(
            f"--sources={tmp_path}/in.jsonl",
            f"--output={tmp_path}/out",
            "--eval_fraction=0",
            f"--tokenizer={byte_tokenizer(tmp_path / 'bytes.tiktoken')}",
            f"--filters.checkpoint={folder}",
            "--filters.checkpoint_max_bpb=inf",
        )
    )
    rows = pq.read_table(tmp_path / "out/02-checkpoint_perplexity/kept/00000.parquet").to_pylist()
    less, more = sorted(row["score_model_bits_per_byte"] for row in rows)
    prepare_data.main(
        parsed(
            f"--sources={tmp_path}/in.jsonl",
            f"--output={tmp_path}/less",
            "--eval_fraction=0",
            f"--tokenizer={tmp_path}/bytes.tiktoken",
            f"--filters.checkpoint={folder}",
            f"--filters.checkpoint_max_bpb={(less + more) / 2}",
        )
    )
    counts = json.loads((tmp_path / "less/counts.json").read_text())["02-checkpoint_perplexity"]
    assert counts["kept"]["documents"] == counts["rejected"]["too_strange"]["documents"] == 1


def test_prepare_data_refuses_a_folder_of_other_settings(tmp_path):
    (tmp_path / "in.txt").write_text("some text to learn tokens from " * 20)
    write_rows(tmp_path / "tests/gsm8k_test.jsonl", [{"question": "what is this", "answer": "1"}])
    given = (
        f"--sources={tmp_path}/in.txt",
        f"--output={tmp_path}/out",
        "--eval_fraction=0",
        f"--filters.test_sets={tmp_path}/tests",
        "--vocabulary.size=262",
    )
    prepare_data.main(parsed(*given))
    prepare_data.main(parsed(*given))
    for flag in ("--vocabulary.size=263", "--seed=5", "--shard_tokens=7", "--mixture.weights=in=2"):
        with pytest.raises(ConfigError, match="made with different settings") as caught:
            prepare_data.main(parsed(*given, flag))
        assert "another --output, or delete" in caught.value.fix
    write_rows(tmp_path / "tests/gsm8k_test.jsonl", [{"question": "something else", "answer": "1"}])
    with pytest.raises(ConfigError, match="(?s)made with different settings.*test_sets"):
        prepare_data.main(parsed(*given))


def test_prepare_data_reports_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("text")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_data.review, "page", full)
    with pytest.raises(DataError, match="(?s)No space left on device.*out"):
        prepare_data.main(parsed(f"--sources={tmp_path}/in.txt", f"--output={tmp_path}/out"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sources": ()}, "no sources"),
        ({"tokenizer": "a", "vocabulary": Vocabulary(base="b")}, "sets a full vocabulary"),
        ({"vocabulary": Vocabulary(languages=("zh",))}, "(?s)not a valid weight.*LANGUAGE=NUMBER"),
        ({"filters": prepare_data.Filters(perplexity=("en=m.npz",))}, "existing vocabulary"),
        ({"filters": prepare_data.Filters(checkpoint="run")}, "an upper limit on bits per byte"),
        ({"partition_mb": 0.0}, "partition_mb=0.0 is not"),
        ({"shard_tokens": -1.0}, "shard_tokens=-1.0 is not"),
        ({"eval_fraction": 1.0}, "eval_fraction=1.0 is not"),
    ],
)
def test_check_refuses_invalid_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare_data.check(dataclasses.replace(prepare_data.SMOKE, **changes))


def test_check_names_the_extra_of_missing_packages(monkeypatch):
    monkeypatch.setattr(prepare_data, "find_spec", lambda name: name != "py3langid")
    with pytest.raises(ConfigError, match=r"(?s)not installed: py3langid.*qwen_jax\[data\]"):
        prepare_data.check(prepare_data.SMOKE)
    prepare_data.check(dataclasses.replace(prepare_data.SMOKE, identify_language=False))


def test_check_refuses_a_missing_tokenizer_before_any_work(tmp_path):
    (tmp_path / "in.txt").write_text("text")
    with pytest.raises(TokenizerError, match="file or folder does not exist"):
        prepare_data.main(
            parsed(
                f"--sources={tmp_path}/in.txt",
                f"--output={tmp_path}/out",
                f"--tokenizer={tmp_path}/gone.tiktoken",
            )
        )
    assert not (tmp_path / "out").exists()
