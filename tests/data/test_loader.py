"""Loader: batches are a function of (seed, step) on any number of hosts; no token is lost."""

import numpy as np
import pytest

from qwen_jax.config import DataConfig
from qwen_jax.data import shards
from qwen_jax.data.document import Document
from qwen_jax.data.loader import Loader, folder_and_weight, to_batch
from qwen_jax.errors import DataError
from tests.helpers.paths import ALL_CHARACTERS, EACH_CHARACTER, MORE
from tests.helpers.shard_text import Bytes, make_documents, read

T, B = 16, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    shards.write(make_documents(), root / "a", Bytes(), num_shards=3)
    shards.write(
        [Document(d.name, d.text.upper()) for d in make_documents(50)], root / "b", Bytes()
    )
    return root


def make(folder, *names, packing="concat", **settings):
    sources = tuple(f"{folder}/{name}" for name in names or ("a/train",))
    return Loader(
        DataConfig(sources=sources, packing=packing),
        **{"context_length": T, "batch_size": B, "end_of_text": 256, "seed": 0} | settings,
    )


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_loader_epoch_has_every_token_once_as_target(folder):
    loader, stream = make(folder, batch_size=1), read(folder / "a/train")
    steps = -(-(len(stream) - 1) // T)
    batches = [loader.batch(step) for step in range(steps)]
    targets = np.concatenate([b.targets[b.loss_weights > 0] for b in batches])
    assert sorted(targets) == sorted(stream[1:])
    text = stream.tobytes()
    for batch in batches:  # sequences are slices of the stream, also across file boundaries
        kept = batch.segment_ids[0] > 0
        assert batch.tokens[0][kept].astype(stream.dtype).tobytes() in text
    second = [loader.batch(steps + step).tokens for step in range(steps)]
    assert not all(np.array_equal(a.tokens, b) for a, b in zip(batches, second, strict=True))


def test_iterate_gives_the_same_batch_from_any_start_step(folder):
    loader = make(folder, "a/train=3", "b/train=1")
    with loader.iterate(0) as stream:
        from_zero = [next(stream) for _ in range(12)]
    with make(folder, "a/train=3", "b/train=1").iterate(7) as stream:
        from_seven = [next(stream) for _ in range(5)]
    for step in range(5):
        assert same(from_zero[7 + step], from_seven[step])
        assert same(from_zero[7 + step], loader.batch(7 + step))
    assert not same(from_zero[0], make(folder, "a/train=3", "b/train=1", seed=1).batch(0))


@pytest.mark.parametrize("names", [("a/train",), ("a/train=3", "b/train=1")])
@pytest.mark.parametrize("batch_size, rows", [(1, None), (1, range(1)), (2, [1]), (3, [0, 2])])
def test_iterate_accepts_small_batches(folder, names, batch_size, rows):
    loader = make(folder, *names, batch_size=batch_size, rows=rows)
    with loader.iterate(5) as stream:
        for step in range(5, 8):
            batch = next(stream)
            assert len(batch.tokens) == len(rows or [0]) and same(batch, loader.batch(step))


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_loader_rows_select_rows_of_the_same_global_batch(folder, hosts):
    full = make(folder).batch(5)
    for host in range(hosts):
        rows = range(host, B, hosts)  # rows of a host need not be contiguous
        np.testing.assert_array_equal(make(folder, rows=rows).batch(5).tokens, full.tokens[rows])


def test_loader_mixes_sources_by_weight(folder):
    loader = make(folder, "a/train=3", "b/train=1")
    upper = np.mean([(loader.batch(step).tokens == ord("A")).sum() for step in range(200)])
    lower = np.mean([(loader.batch(step).tokens == ord("a")).sum() for step in range(200)])
    assert 0.28 < upper / lower < 0.39
    assert loader.epochs(100)["a"] == pytest.approx(
        75 * B / -(-(loader.tokens_per_epoch["a"] - 1) // T), rel=0.01
    )


def test_to_batch_separates_documents_only_when_told():
    rows = np.array([[1, 2, 256, 3, 256, 4, 5], [1, 2, 3, 256, -1, -1, -1]], np.int32)
    batch = to_batch(rows, end_of_text=256, documents=True)
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert batch.loss_weights.tolist() == [[1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]]
    concat = to_batch(rows, end_of_text=256, documents=False)
    assert concat.segment_ids.tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert concat.loss_weights.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert concat.positions.tolist()[0] == [0, 1, 2, 3, 4, 5]
    assert concat.targets.min() == 0


def test_eval_batches_are_one_pass_and_always_the_same(folder):
    loader, stream = make(folder), read(folder / "a/train")
    batches = list(loader.eval_batches(10_000))
    assert sum(batch.loss_weights.sum() for batch in batches) == len(stream) - 1
    assert all(same(a, b) for a, b in zip(batches[:3], loader.eval_batches(3), strict=True))
    halves = [
        list(make(folder, rows=range(host * B // 2, (host + 1) * B // 2)).eval_batches(10_000))
        for host in range(2)
    ]
    np.testing.assert_array_equal(
        np.concatenate([halves[0][-1].tokens, halves[1][-1].tokens]), batches[-1].tokens
    )


@pytest.mark.parametrize(
    "names, settings, message",
    [
        (("a/train=x",), {}, "not a weight"),
        (("a/train=-1",), {}, "not positive"),
        (("a/train=1", "b/train"), {}, "some sources have a weight"),
        (("a/train=nan",), {}, "not positive"),
        (("none=x",), {}, "no folder"),
        (("none=x/train",), {}, "shard folder does not exist"),
        (("none",), {}, "shard folder does not exist"),
        ((), {"end_of_text": 7}, "end with id 256"),
        ((), {"vocab_size": 200}, "--model.vocab_size=384"),
        ((), {"tokenizer": "x"}, "a different token"),
    ],
)
def test_loader_rejects_bad_sources(folder, names, settings, message):
    with pytest.raises(DataError, match=message):
        make(folder, *names, **settings)


def test_to_batch_segments_equal_a_loop_over_tokens():
    rows = np.random.default_rng(0).integers(0, 4, (7, 34)).astype(np.int32)  # 0 ends a document
    batch = to_batch(rows, end_of_text=0, documents=True)
    for tokens, weights, segments, positions in zip(
        batch.tokens, batch.loss_weights, batch.segment_ids, batch.positions, strict=True
    ):
        segment, position = 1, 0
        for i, token in enumerate(tokens):
            assert (segments[i], positions[i], weights[i]) == (segment, position, token != 0)
            segment, position = (segment + 1, 0) if token == 0 else (segment, position + 1)


def test_folder_and_weight_reads_a_folder_of_any_name(tmp_path):
    for name in [*EACH_CHARACTER, ALL_CHARACTERS, *MORE]:
        path = str(tmp_path / name)
        assert folder_and_weight(f"{path}=0.25") == (path, 0.25)
        (tmp_path / name).mkdir()
        assert folder_and_weight(f"{path}/") == (f"{path}/", None)
        assert folder_and_weight(f"{path}=2") == (path, 2)
        assert folder_and_weight(f"{path}/=2") == (f"{path}/", 2)
        if name != "lr=0.5":
            assert folder_and_weight(path) == (path, None)


def test_folder_and_weight_says_how_to_write_a_name_that_ends_like_a_weight(tmp_path):
    (tmp_path / "lr=0.5").mkdir()
    with pytest.raises(DataError, match="write .*/lr=0.5/ for this folder"):
        folder_and_weight(str(tmp_path / "lr=0.5"))


def test_loader_opens_a_folder_of_any_name(folder, tmp_path):
    """A folder whose name has every character, and ends like a weight."""
    (tmp_path / "own").symlink_to(folder / "a")
    for name in (ALL_CHARACTERS, "lr=0.5", "a,b"):
        (tmp_path / name).symlink_to(folder / "a")
        (plain,) = make(tmp_path, "own/train=3")._shards
        for written in (f"{name}/train", f"{name}/train=3"):
            (found,) = make(tmp_path, written)._shards
            assert found.lengths == plain.lengths and found.folder == tmp_path / name / "train"
