"""LAMBADA: JSONL or the authors' plain text, and the word that a completion begins with."""

import pytest

from qwen_jax.errors import DataError
from qwen_jax.evaluate.tasks import TASKS
from qwen_jax.evaluate.tasks.appendix import lambada
from tests.helpers import benchmark_rows

TASK = TASKS["lambada"]
PASSAGES = (
    'He put the lamp on the table.\n"Who took my lamp?" she asked, and looked for the lamp',
    "The dog barked at the gate until somebody opened the gate",
    "They had carried the boat to the shore, and now nobody could find the boat",
    'Mara wrote to him each week. "No letter?" he said. "Not one from Mara',
    "It was an old well; the rope had rotted, and the bucket lay in the well",
    "The baker sold his last loaf, and the child went home without a loaf",
    "Nobody in the village had seen a train before they built the half-station",
    "Ten years he kept the key, and at last there was a door for the key",
    "She liked the song so well that even asleep she heard the song",
    "You may have the coat, he said, since it was your father's coat",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lambada, "PASSAGES", 10)
    benchmark_rows.write(tmp_path / lambada.FILE, [{"text": text} for text in PASSAGES])
    return tmp_path


def test_lambada_is_the_last_word(folder):
    work = benchmark_rows.read(TASK, folder)
    assert work.prompt(work.examples[0]) == (
        'He put the lamp on the table.\n"Who took my lamp?" she asked, and looked for the'
    )
    assert work.examples[6].answer == "half-station"
    assert work.examples[1].texts() == (PASSAGES[1],)
    benchmark_rows.assert_gold_is_right(TASK, work)
    for text, correct in (
        (" lamp", True),
        (' lamp," he said', True),
        (" lamps", False),
        (" Lamp", False),
        (" … lamp", True),
        ("", False),
    ):
        assert TASK.generation.verdict(text, work.examples[0]).correct == correct


def test_lambada_reads_plain_text(folder):
    (folder / lambada.FILE).unlink()
    plain = [text.replace("\n", " ") for text in PASSAGES]
    plain[1] = f"a line\u2028separator {plain[1]}"  # is not the end of a row
    (folder / lambada.PLAIN).write_text("\n".join(plain) + "\n", encoding="utf-8")
    work = benchmark_rows.read(TASK, folder)
    assert [one.answer for one in work.examples][:4] == ["lamp", "gate", "boat", "Mara"]
    plain[4] = "one"
    (folder / lambada.PLAIN).write_text("\n".join(plain) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"(?s)a single word.*{lambada.PLAIN} row 5"):
        benchmark_rows.read(TASK, folder)


@pytest.mark.parametrize(
    ("text", "what"),
    [(None, "text is 'None'"), ("word ", "a single word"), (" word", "a single word")],
)
def test_lambada_refuses_malformed_rows(folder, text, what):
    benchmark_rows.assert_refused(
        TASK, folder, lambada.FILE, 7, lambda row: row.update(text=text), what
    )
