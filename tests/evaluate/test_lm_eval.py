"""lm-eval on our engine, through our server, and with transformers: the same numbers."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

from qwen_jax.errors import ConfigError, DataError
from qwen_jax.inference.engine import Engine
from qwen_jax.pretrained.huggingface import load_pretrained
from tests.helpers.lm_eval_tasks import (
    ANSWERS,
    CHOICES,
    CONTEXT,
    TEXTS,
    TOKENIZER,
    write_model,
    write_tasks,
)
from tests.helpers.server import MODEL, running

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS = [CHOICES, TEXTS, ANSWERS]
TOLERANCE = 1e-4  # nats of a sample; float32 sums in another order
# Of a whole text: lm-eval adds up with transformers in float32, whose spacing at 2,000 is 1.2e-4.
RELATIVE = 3e-7


def test_adapter_without_lm_eval_names_the_extra():
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-eval is installed")
    with pytest.raises(ConfigError, match=r"qwen_jax\[lm-eval\]"):
        import qwen_jax.evaluate.lm_eval_adapter  # noqa: F401


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def evaluate(lm_eval, tmp_path_factory):
    """Returns a function from a model to the samples of each task and the results."""
    import datasets
    from lm_eval.tasks import TaskManager

    tasks = write_tasks(tmp_path_factory.mktemp("tasks"))
    cache = str(tmp_path_factory.mktemp("cache"))

    def evaluate(model, names=TASKS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=list(names),
                task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
                bootstrap_iters=0,
                log_samples=True,
            )
        samples = {
            name: [one["resps"] for one in sorted(rows, key=lambda one: one["doc_id"])]
            for name, rows in found["samples"].items()
        }
        return samples, found["results"]

    return evaluate


@pytest.fixture(scope="module")
def adapter(lm_eval, folder):
    from qwen_jax.evaluate.lm_eval_adapter import QwenJaxLM

    return QwenJaxLM(str(folder), batch_size=4)


@pytest.fixture(scope="module")
def ours(evaluate, adapter):
    return evaluate(adapter)


def same(found, expected, names=TASKS):
    """Both have the same log-likelihoods, greedy flags, texts and scores."""
    for name in names:
        for one, other in zip(found[0][name], expected[0][name], strict=True):
            for (left,), (right,) in zip(one, other, strict=True):
                if name == CHOICES:
                    assert left[0] == pytest.approx(right[0], abs=TOLERANCE)
                    assert bool(left[1]) == bool(right[1])
                elif name == TEXTS:
                    assert left == pytest.approx(right, abs=TOLERANCE, rel=RELATIVE)
                else:
                    assert left == right
        for metric, value in expected[1][name].items():
            if isinstance(value, float):
                assert found[1][name][metric] == pytest.approx(value, rel=1e-5), metric


def test_adapter_equals_transformers(evaluate, ours, folder):
    pytest.importorskip("torch", reason="torch is not installed")
    from lm_eval.models.huggingface import HFLM

    theirs = evaluate(HFLM(str(folder), device="cpu", dtype="float32", batch_size=3))
    same(ours, theirs)
    choices, answers = theirs[0][CHOICES], theirs[0][ANSWERS]
    assert len({one[0][0] for sample in choices for one in sample}) > 40  # not all alike
    assert 0 < theirs[1][CHOICES]["acc,none"] < 1
    assert len({sample[0][0] for sample in answers}) > 4


@pytest.mark.parametrize("batch_size", [1, 5])
def test_server_gives_local_completions_the_numbers_of_the_adapter(
    evaluate, adapter, folder, monkeypatch, batch_size
):
    pytest.importorskip("tenacity", reason="lm-eval[api] is not installed")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    config, params = load_pretrained(folder)
    engine = Engine(params, config, tokenizer=TOKENIZER, max_num_seqs=4, max_model_len=CONTEXT)
    with running(engine, TOKENIZER, context=CONTEXT) as server:
        model = LocalCompletionsAPI(
            base_url=f"http://127.0.0.1:{server.port}/v1/completions",
            model=MODEL,
            batch_size=batch_size,
            max_length=CONTEXT,
            num_concurrent=1 if batch_size > 1 else 3,
        )
        assert model.tokenizer_backend == "remote"
        found = evaluate(model)
        assert server.worker.in_flight == 0
    # The client counts the new token, and the last one of the continuation, which needs no place.
    for names, unused in (([CHOICES, TEXTS], 2), ([ANSWERS], 1)):
        monkeypatch.setattr(adapter, "max_length", CONTEXT - unused)
        same(found, evaluate(adapter, names), names)


def test_adapter_is_the_same_bits_for_any_batch(evaluate, ours, folder):
    from qwen_jax.evaluate.lm_eval_adapter import QwenJaxLM

    assert evaluate(QwenJaxLM(str(folder), batch_size=1), [CHOICES, TEXTS])[0] == {
        name: ours[0][name] for name in (CHOICES, TEXTS)
    }


def instances(lm_eval, kind, *arguments):
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)
    ]


def test_boundaries_and_empty_contexts(lm_eval, adapter):
    # Spaces at the end of a context go to the continuation.
    (one, other) = adapter.loglikelihood(
        instances(lm_eval, "loglikelihood", ("Answer: ", "A"), ("Answer:", " A"))
    )
    assert one == other
    end = "<|endoftext|>"
    (empty, explicit) = adapter.loglikelihood(
        instances(lm_eval, "loglikelihood", ("", "the path"), (end, "the path"))
    )
    assert empty == explicit  # no text has two of them
    (again,) = adapter.loglikelihood(instances(lm_eval, "loglikelihood", ("", f"{end}the path")))
    assert again == empty
    with pytest.raises(DataError, match="(?s)no token of its own.*target_delimiter"):
        adapter.loglikelihood(instances(lm_eval, "loglikelihood", ("Answer:", "A")))
    with pytest.raises(DataError, match="(?s)401 tokens.*context 192"):
        adapter.loglikelihood(instances(lm_eval, "loglikelihood", ("x", "y" * 401)))
    assert adapter.generate_until(
        instances(lm_eval, "generate_until", ("", {"until": [], "max_gen_toks": 3}))
    ) == adapter.generate_until(
        instances(lm_eval, "generate_until", (end, {"until": [], "max_gen_toks": 3}))
    )


def test_sampled_completions_differ_and_repeat(lm_eval, adapter):
    settings = {"until": ["\n"], "max_gen_toks": 9, "do_sample": True, "temperature": 1.5}
    requests = instances(lm_eval, "generate_until", *[("the", settings)] * 5)
    found = adapter.generate_until(requests)
    assert len(set(found)) > 1 and adapter.generate_until(requests) == found


def test_cut_prompts_are_counted(lm_eval, adapter, caplog):
    with caplog.at_level("WARNING"):
        adapter.loglikelihood(instances(lm_eval, "loglikelihood", ("x" * 400, " A"), ("x", " A")))
        settings = {"until": [], "max_gen_toks": 3}
        adapter.generate_until(
            instances(lm_eval, "generate_until", *[("x" * n, settings) for n in (1, 2, 400)])
        )
    assert "1 of 3 prompts" in caplog.text
    assert "1 of 2 prompts" in caplog.text


def test_chat_template_renders_and_leaves_the_last_message_open(adapter):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    text = adapter.apply_chat_template(messages[:1])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = adapter.tok_encode(text)
    assert ids.count(TOKENIZER.im_start) == 3 and TOKENIZER.decode(ids) == text
    assert adapter.apply_chat_template(messages, add_generation_prompt=False).endswith("\nWell")
    assert adapter.chat_template(True) and not adapter.chat_template(False)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"chekpoint": "x"}, "did you mean 'checkpoint'"),
        ({"device": "cuda:1"}, "JAX_PLATFORMS"),
        ({"batch_size": 0}, "must be positive"),
    ],
)
def test_bad_arguments_are_named(lm_eval, folder, arguments, word):
    from qwen_jax.evaluate.lm_eval_adapter import QwenJaxLM

    with pytest.raises(ConfigError) as caught:
        QwenJaxLM(str(folder), **arguments)
    assert word in str(caught.value)


def test_unknown_settings_of_generation_are_refused(lm_eval, adapter):
    with pytest.raises(ConfigError, match="(?s)num_beams.*gen_kwargs"):
        adapter.generate_until(instances(lm_eval, "generate_until", ("x", {"num_beams": 2})))
    with pytest.raises(ConfigError, match="(?s)no room"):
        adapter.generate_until(instances(lm_eval, "generate_until", ("x", {"max_gen_toks": 999})))


def test_command_knows_the_model(lm_eval, evaluate, folder, tmp_path):
    tasks = write_tasks(tmp_path, count=3)
    command = [sys.executable, "-m", "qwen_jax.evaluate.lm_eval_adapter", "run"]
    command += ["--model", "qwen_jax", "--model_args", f"checkpoint={folder}", "--limit", "2"]
    command += ["--tasks", CHOICES, "--include_path", str(tasks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-2000:]
    assert CHOICES in done.stdout and "acc_norm" in done.stdout
