"""experiments.prepare_data resumes to the same bytes, wherever it was killed or the disk was full.

test_pipeline_killed.py kills processes; this one stops at every single call that changes files.
"""

import dataclasses
import shutil

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("tokenizers")

from experiments import prepare_data
from experiments.prepare_data import Filters
from qwen_jax.corpus.filters.language import Language
from qwen_jax.corpus.output import mixture
from qwen_jax.corpus.output.vocabulary import Vocabulary
from qwen_jax.errors import QwenJaxError
from qwen_jax.utils.jsonl import write_rows
from tests.helpers.corpus_files import files_of
from tests.helpers.interrupted_files import FREES, Killed, interrupted

EVERY_STAGE = {
    "identify_language": True,
    "language": Language(threshold=0.0),
    "exact_dedup": ("url", "document", "paragraph"),
    "near_dedup": True,
}


class Runs:
    """Runs of one recipe, without the time of matplotlib, and what an undisturbed one wrote."""

    def __init__(self, folder, **stages):
        write_rows(folder / "a.jsonl", [{"text": f"row {i % 9} of a file " * 9} for i in range(12)])
        (folder / "b.txt").write_text("a single text")
        write_rows(folder / "tests/gsm8k_test.jsonl", [{"question": "what is 7?", "answer": "7"}])
        filters = Filters(rules=False, test_sets=str(folder / "tests") if stages else None)
        self._config = dataclasses.replace(
            prepare_data.UNFILTERED,
            sources=(f"{folder}/a.jsonl", f"{folder}/b.txt"),
            filters=filters,
            vocabulary=Vocabulary(size=262),
            workers=0,
            **stages,
        )
        with interrupted() as self.calls:
            self(folder / "complete")
        self._complete = files_of(folder / "complete")
        self._folder = folder

    def __call__(self, output):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mixture, "draw", lambda entries: b"a picture")
            prepare_data.main(dataclasses.replace(self._config, output=str(output)))

    def check(self, at, *, full_disk, again=None):
        """Stops a run at a call, and the next one too if `again` is given; compares the third."""
        output = self._folder / f"{at}-{full_disk}-{again}"
        for stop in (at,) if again is None else (at, again):
            ended = "completed"
            with interrupted(stop, full_disk=full_disk) as calls:
                try:
                    self(output)
                except Killed:
                    ended = "killed"
                except QwenJaxError as error:
                    ended = "full"
                    assert "No space left" in str(error)
            if stop == at and again is None:
                assert ended == ("full" if full_disk else "killed") or self.calls[at] in FREES
        self(output)
        assert files_of(output) == self._complete, (at, self.calls[at], full_disk, len(calls))
        shutil.rmtree(output)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    pytest.importorskip("matplotlib")
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("full_disk", [False, True])
def test_prepare_data_resumes_after_each_call_of_its_end(runs, full_disk):
    """Samples the calls before the last clean-up, which deletes the parts of the shards."""
    count = len(runs.calls)
    assert runs.calls[-1] == "rmdir"
    for at in (*range(0, count - 12, 37), *range(count - 12, count, 1 + 2 * full_disk)):
        runs.check(at, full_disk=full_disk)


@pytest.mark.slow
@pytest.mark.parametrize("full_disk", [False, True])
def test_prepare_data_resumes_after_every_call(runs, full_disk):
    for at in range(len(runs.calls)):
        runs.check(at, full_disk=full_disk, again=at // 3 if at % 2 else None)


@pytest.mark.slow
def test_prepare_data_resumes_after_every_call_with_all_stages(tmp_path):
    pytest.importorskip("py3langid")
    runs = Runs(tmp_path, **EVERY_STAGE)
    for at in range(len(runs.calls)):
        runs.check(at, full_disk=at % 4 == 3, again=at // 3 if at % 5 == 4 else None)
