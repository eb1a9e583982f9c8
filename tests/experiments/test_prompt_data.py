"""experiments.tag_prompts and self_instruct, with scripted models and a tiny checkpoint."""

import dataclasses
import json

import pytest

from experiments import self_instruct, tag_prompts
from qwen_jax.data.chat.conversations import Counts, read_conversations
from qwen_jax.data.chat.prompts import read_prompts
from qwen_jax.errors import QwenJaxError
from qwen_jax.inference import jsonl
from qwen_jax.inference.request import Completion
from qwen_jax.synthetic import react_seeds
from qwen_jax.synthetic.self_instruct import Seed, Settings, read_react_seeds, read_seeds
from tests.helpers.tiny_checkpoint import TOKENIZER, write

ROWS = [
    {"prompt": "Write a poem about the sea"},
    {"prompt": "Write a poem about the sea"},
    {"prompt": "Translate this story into French in under 20 words: Once."},
    {
        "messages": [
            {"role": role, "content": text}
            for role, text in (
                ("system", "Be kind."),
                ("user", "1+1?"),
                ("assistant", "2"),
                ("user", "2+2?"),
                ("assistant", "4"),
            )
        ]
    },
    {"prompt": "Hi"},
    {"prompt": " "},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("model") / "tiny", num_layers=1))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def tag(prompts, tmp_path, **changes):
    tag_prompts.main(
        dataclasses.replace(
            tag_prompts.RECIPE, prompts=(prompts,), output=str(tmp_path / "tags"), **changes
        )
    )
    return tmp_path / "tags"


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tag_prompts_writes_tags_and_a_selection_for_ppo(prompts, tmp_path, capsys):
    folder = tag(prompts, tmp_path, choose=3)
    output = capsys.readouterr().out
    assert "4 prompts: 4 kept; 1 skipped: duplicate prompt" in output
    assert "1 skipped: no prompt" in output and "chosen.jsonl: 3 prompts" in output
    rows = lines(folder / "tags.jsonl")
    assert [row["prompt"][:9] for row in rows] == ["Write a p", "Translate", "system: B", "Hi"]
    assert {"poem", "written in latin script"} <= set(rows[0]["tags"])
    assert (folder / "tags.png").read_bytes().startswith(b"\x89PNG")
    texts = [
        TOKENIZER.decode(tokens)
        for tokens in read_prompts(  # as experiments.ppo does
            [folder / "chosen.jsonl"], TOKENIZER, max_tokens=500, counts=Counts()
        )
    ]
    assert len(texts) == 3 and not any("\nHi<" in text for text in texts)
    (conversation,) = [text for text in texts if "Be kind." in text]
    assert "1+1?" in conversation and conversation.endswith(
        "2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert all(row["messages"][-1]["role"] == "user" for row in lines(folder / "chosen.jsonl"))
    assert (
        jsonl.Source(
            folder / "chosen.jsonl",
            TOKENIZER,
            jsonl.DEFAULTS,  # and generate
            context=500,
        ).check()[0]
        == 3
    )
    # A second run tags nothing; sampling by weight gives another selection.
    before = (folder / "tags.jsonl").read_bytes()
    tag(prompts, tmp_path, choose=4, by="weight", seed=1)
    assert (folder / "tags.jsonl").read_bytes() == before
    assert len(lines(folder / "chosen.jsonl")) == 4
    # An existing tag file; rare tags are dropped.
    tag(prompts, tmp_path, tags=str(folder / "tags.jsonl"), alpha=3)
    assert "4 kept; 1 tags" in capsys.readouterr().out
    # A number of tags instead of how rare a tag may be.
    tag(prompts, tmp_path, tags=str(folder / "tags.jsonl"), num_tags=1)
    output = capsys.readouterr().out
    assert "--num_tags=1: --alpha=2 instead of 1" in output and "4 kept; 1 tags" in output


def test_tag_prompts_refuses_invalid_settings(prompts, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "unknown", "tags": []}\n')
    for changes, message in (
        ({"choose": 5}, "cannot select 5 of 4 prompts"),
        ({"tagger": "model"}, "no model"),
        ({"tags": str(other)}, "1 of the 1 prompts in this file are not among"),
    ):
        with pytest.raises(QwenJaxError, match=message):
            tag(prompts, tmp_path, **changes)
    with pytest.raises(QwenJaxError, match="no prompts"):
        tag_prompts.main(tag_prompts.SMOKE)
    assert not (tmp_path / "tags").exists()


class Scripted:
    """A model that writes valid lists, answers and transcripts."""

    def __init__(self):
        self.queries = 0

    def __call__(self, conversations, seeds):
        for index, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
            self.queries += 1
            role, last = conversation[-1]
            if last == "Thought:":
                text = f" easy\nFinal Answer: {seed}"
            elif role == "assistant":
                new = " ".join(f"w{seed * k % 9973}" for k in (1, 2, 3, 5, 7))
                text = f" Why would {new}?\n9. Image of a fox in {seed} colors"
            else:
                text = f"Because {seed}."
            yield index, Completion((1,), text, None, "stop")


def make(tmp_path, **changes):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"instruction": "Name three birds that cannot fly.", "output": "Kiwi."}\n')
    self_instruct.main(
        dataclasses.replace(
            self_instruct.SMOKE,
            **{"seeds": (str(seeds),), "output": str(tmp_path / "made"), **changes},
        )
    )
    return tmp_path / "made"


def test_self_instruct_samples_are_reviewed_and_read_by_sft(tmp_path, monkeypatch, capsys):
    model = Scripted()
    monkeypatch.setattr(self_instruct, "open_model", lambda config, file: model)
    folder = make(tmp_path, checkpoint="any")
    output = capsys.readouterr().out
    assert "round 1/2: 4 of 4 samples, ETA 0s" in output
    assert "4 skipped: forbidden word 'image' (first: round 0, instructions 0" in output
    assert "0 kept; 4 skipped: not reviewed yet" in output
    assert [row["reason"] for row in lines(folder / "rejected.jsonl")] == [
        "forbidden word 'image'"
    ] * 4
    queries = model.queries
    rows = lines(folder / "review.jsonl")
    assert {row["kind"] for row in rows} == {"instruction", "react"}
    rows[0]["keep"], rows[2]["keep"], rows[3]["keep"] = True, True, False
    (folder / "review.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make(tmp_path, checkpoint="any")
    assert "2 kept; 1 skipped: not reviewed yet" in capsys.readouterr().out
    assert model.queries == queries  # no request is repeated
    for name in ("responses.jsonl", "responses.jsonl.run.json"):  # names of earlier versions
        (folder / name).rename(folder / name.replace("responses", "asked"))
    make(tmp_path, checkpoint="any")
    assert model.queries == queries and not (folder / "responses.jsonl").exists()
    conversations = list(read_conversations([folder / "conversations.jsonl"], Counts()))
    assert [dict(conversation.turns)["assistant"].split()[0] for conversation in conversations] == [
        "Because",
        "Thought:",
    ]
    # The next iteration can start from the kept samples.
    assert read_seeds(folder / "conversations.jsonl", Counts()) == [
        Seed(rows[0]["question"], conversations[0].turns[1][1])
    ]
    assert read_react_seeds(folder / "react.jsonl") == [
        Seed(rows[2]["question"], conversations[1].turns[1][1], tuple(rows[2]["tools"]))
    ]
    assert " not reviewed" in (folder / "review.md").read_text()
    with pytest.raises(QwenJaxError, match="temperature: was 0.7, now 0.1"):
        make(tmp_path, checkpoint="any", temperature=0.1)
    # A run may be extended; another model may not continue it.
    more = Settings(**(dataclasses.asdict(self_instruct.SMOKE.settings) | {"samples": 8}))
    make(tmp_path, checkpoint="any", settings=more)
    assert "8 of 8 samples" in capsys.readouterr().out
    assert [row["keep"] for row in lines(folder / "review.jsonl")][:4] == [True, None, True, False]


def test_self_instruct_counts_unusable_responses(checkpoint, tmp_path, capsys):
    # Prompts of one length, about 400 bytes: each size of a chunk compiles another program.
    plain = {"instruction_lists": 4, "question_lists": 0}
    settings = dataclasses.replace(self_instruct.SMOKE.settings, **plain)
    small = {"context": 512, "rows": 1, "max_new_tokens": 16, "settings": settings}
    folder = make(tmp_path, checkpoint=checkpoint, **small)
    output = capsys.readouterr().out
    assert "round 2/2: 0 of 4 samples" in output
    assert "8 skipped: a response without a list (first: round 0, instructions 0" in output
    assert len(lines(folder / "responses.jsonl")) == len(lines(folder / "rejected.jsonl")) == 8
    assert all(
        row["text"] and row["finish"] == "length" for row in lines(folder / "responses.jsonl")
    )
    record = json.loads((folder / "responses.jsonl.run.json").read_text()) | {"model": "another"}
    (folder / "responses.jsonl.run.json").write_text(json.dumps(record))
    (folder / "responses.jsonl").write_text("")  # some requests are missing
    with pytest.raises(QwenJaxError, match="model: .* has other contents than recorded"):
        make(tmp_path, checkpoint=checkpoint, **small)


@pytest.mark.slow  # compiles for ten seconds; the test above samples from a model, too
def test_tag_prompts_counts_unusable_responses(checkpoint, prompts, tmp_path, capsys):
    """Random text is not a list of tags."""
    small = {"context": 2048, "rows": 1, "max_new_tokens": 16}
    folder = tag(
        prompts,
        tmp_path,
        tagger="model",
        checkpoint=checkpoint,
        **small,
    )
    output = capsys.readouterr().out
    assert "responses: 0 kept; 4 skipped: a response without a list of tags" in output
    assert "0 kept; 4 skipped: without tags" in output
    assert [row["tags"] for row in lines(folder / "tags.jsonl")] == [[]] * 4
    record = json.loads((folder / "tags.jsonl.run.json").read_text())
    assert record["tagger"] == "model" and record["model"] and record["tokenizer"]
    record["model"] = "another"
    (folder / "tags.jsonl.run.json").write_text(json.dumps(record))
    (folder / "tags.jsonl").write_text("")  # some requests are missing
    with pytest.raises(QwenJaxError, match="model: .* has other contents than recorded"):
        tag(
            prompts,
            tmp_path,
            tagger="model",
            checkpoint=checkpoint,
            **small,
        )


def test_self_instruct_refuses_invalid_settings_before_any_work(tmp_path):
    for changes, message in (
        ({}, "no model"),
        ({"checkpoint": "x", "seeds": ()}, "no seed tasks"),
        ({"checkpoint": "x", "tools": str(tmp_path / "no.json")}, "does not exist"),
    ):
        with pytest.raises(QwenJaxError, match=message):
            make(tmp_path, **changes)
    assert not (tmp_path / "made").exists()


def test_self_instruct_rounds_train_on_reviewed_samples_and_go_on(tmp_path, monkeypatch, capsys):
    opened, trained, evaluated = [], [], []
    monkeypatch.setattr(
        self_instruct, "open_model", lambda config, file: opened.append(config) or Scripted()
    )
    monkeypatch.setattr(self_instruct.fine_tuning, "main", trained.append)

    def evaluate(config):
        evaluated.append(config)
        folder = tmp_path / "made" / f"round_{len(evaluated)}" / "evaluate"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(
            json.dumps({"tasks": {"tool_use": {"score": 10.0 * len(evaluated)}}})
        )

    monkeypatch.setattr(self_instruct.evaluation, "main", evaluate)
    settings = {
        "checkpoint": "first",
        "rounds": 2,
        "sft": dataclasses.replace(self_instruct.fine_tuning.RECIPE, init_from="base"),
        "evaluate": self_instruct.evaluation.Config(tasks=("tool_use",), data=("files",)),
    }
    folder = make(tmp_path, **settings)
    assert "4 samples of round 1 are not reviewed" in capsys.readouterr().out
    assert not trained and not (folder / "round_2").exists()
    for row in (rows := lines(folder / "round_1" / "review.jsonl")):
        row["keep"] = True
    rows[0]["keep"] = False
    (folder / "round_1" / "review.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make(tmp_path, **settings)
    assert "of round 2 are not reviewed" in capsys.readouterr().out
    assert [one.checkpoint for one in opened] == ["first", str(folder / "round_1" / "sft")]
    (run,) = trained
    assert (run.init_from, run.run_dir) == ("base", str(folder / "round_1" / "sft"))
    assert run.data.conversations == (str(folder / "round_1" / "conversations.jsonl"),)
    assert evaluated[0].checkpoint == run.run_dir and evaluated[0].data == ("files",)
    worked = read_react_seeds(folder / "worked_examples.jsonl")
    assert len(worked) == len(react_seeds.EXAMPLES)
    (record,) = json.loads((folder / "rounds.json").read_text())
    assert record == {
        "round": 1, "proposed": 8, "passed": 4, "kept": 3, "scores": {"tool_use": 10.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"evaluate": self_instruct.evaluation.Config(tasks=("gsm8k",))}, "--evaluate.tasks"),
        ({"rounds": 1, "evaluate": self_instruct.evaluation.Config(output="x")}, "evaluate.output"),
    ],
)
def test_self_instruct_rounds_refuse_flags_without_effect(changes, flag):
    settings = dataclasses.replace(self_instruct.SMOKE.settings, instruction_lists=0)
    config = dataclasses.replace(self_instruct.SMOKE, settings=settings, checkpoint="any")
    with pytest.raises(QwenJaxError, match=flag):
        self_instruct.main(dataclasses.replace(config, **changes))
