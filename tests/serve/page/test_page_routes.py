"""The routes of the web page without a browser: files, headers, keys, origins, tools."""

import hashlib
import json
import pathlib
import re

import pytest

pytest.importorskip("starlette")

from qwen_jax.serve.page import vendor
from qwen_jax.serve.page.assets import FILES, POLICY
from tests.helpers.page import page_server

WEB = vendor.FOLDER.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with page_server(tmp_path_factory.mktemp("page")) as running:
        yield running


def test_vendor_has_the_files_of_its_manifest_and_their_licenses():
    manifest = json.loads((vendor.FOLDER / "manifest.json").read_text())
    assert {*manifest, "manifest.json", "LICENSES"} == {p.name for p in vendor.FOLDER.iterdir()}
    licenses = (vendor.FOLDER / "LICENSES").read_text()
    for name, entry in manifest.items():
        content = (vendor.FOLDER / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
        assert vendor.PACKAGES[entry["package"]][0] == entry["version"]
        assert f"{entry['package']} {entry['version']}" in licenses
    assert len(re.findall("Copyright|Apache License", licenses)) >= len(manifest)


def test_page_has_one_file_of_each_kind_and_nothing_inline():
    own = sorted(path.name for path in WEB.iterdir() if path.is_file())
    assert own == ["app.js", "icon.svg", "index.html", "style.css"]
    html = (WEB / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! defer src=\"/page/)", html)
    assert "://" not in html and "unsafe" not in POLICY
    script = (WEB / "app.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script)


def test_routes_serve_the_page_with_its_policy(server):
    for path in FILES:
        status, headers, body = server.call("GET", path)
        assert status == 200 and body
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        again = server.call("GET", path, headers={"If-None-Match": headers["etag"]})
        assert again[0] == 304 and not again[2]
    assert server.call("GET", "/page/vendor/manifest.json")[0] == 404
    assert server.call("GET", "/page/../app.js")[0] == 404
    settings = json.loads(server.call("GET", "/page/settings")[2])
    assert settings["models"] == ["sft", "ppo"] and settings["votes"] and settings["tools"]
    model = json.loads(server.call("GET", "/page/model?name=ppo")[2])
    assert model["id"] == "ppo" and model["thinking"]
    assert model["defaults"] == {"temperature": 0.7, "top_p": 0.8}
    assert model["tools"][0]["function"]["name"] == "figure"
    assert server.call("GET", "/page/model?name=other")[0] == 404


def test_routes_refuse_other_hosts_and_other_pages(server):
    assert server.call("GET", "/", headers={"Host": "evil.invalid"})[0] == 403
    for headers in (
        {"Origin": "https://evil.invalid"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{server.port + 1}"},
    ):
        assert server.call("GET", "/page/settings", headers=headers)[0] == 403, headers
        body = {"session": "a", "name": "figure", "arguments": "{}"}
        sent = headers | {"Content-Type": "application/json"}
        assert server.call("POST", "/page/tools", body, sent)[0] == 403, headers
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert server.call("GET", "/page/settings", headers=own)[0] == 200
    plain = server.call("POST", "/page/votes", b"{}", {"Content-Type": "text/plain"})
    assert plain[0] == 415


def test_routes_with_a_key_give_only_the_page_without_it(tmp_path):
    with page_server(tmp_path, api_key="secret") as server:
        assert server.call("GET", "/", headers={})[0] == 200
        for path in ("/page/settings", "/page/model", "/v1/models"):
            assert server.call("GET", path, headers={})[0] == 401, path
            assert server.call("GET", path, headers={"Authorization": "Bearer secret"})[0] == 200


def test_tools_run_in_sessions_and_return_figures(server):
    body = {"session": "a", "name": "figure", "arguments": '{"color": "red"}'}
    found = json.loads(server.call("POST", "/page/tools", body)[2])
    assert found["text"] == "drew a red figure" and not found["is_error"]
    assert found["figures"][0].startswith("data:image/png;base64,iVBOR")
    wrong = json.loads(server.call("POST", "/page/tools", body | {"arguments": "{}"})[2])
    assert wrong["is_error"] and "color" in wrong["text"]
    unknown = json.loads(server.call("POST", "/page/tools", body | {"name": "rm"})[2])
    assert unknown["is_error"] and unknown["figures"] == []
    assert server.call("POST", "/page/tools", {"session": "a"})[0] == 400


def test_return_token_ids_gives_prompt_and_completion(server):
    request = {
        "model": "ppo",
        "messages": [{"role": "user", "content": "Hi"}],
        "seed": 1,
        "return_token_ids": True,
    }
    found = json.loads(server.call("POST", "/v1/chat/completions", request)[2])
    ids, text = found["choices"][0]["token_ids"], found["choices"][0]["message"]["content"]
    assert bytes(ids).decode() == text == "ppo answers 'Hi', seed 1"
    prompt = found["prompt_token_ids"]
    assert json.loads(server.call("POST", "/detokenize", {"tokens": prompt, "model": "ppo"})[2])[
        "prompt"
    ].endswith("<|im_start|>assistant\n")
    lines = server.call("POST", "/v1/chat/completions", request | {"stream": True})[2]
    chunks = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: {")]
    assert chunks[0]["prompt_token_ids"] == prompt
    assert [i for c in chunks for i in c["choices"][0].get("token_ids", [])] == ids
    plain = json.loads(
        server.call("POST", "/v1/completions", {"model": "sft", "prompt": "a", "max_tokens": 4})[2]
    )
    assert "token_ids" not in plain["choices"][0] and "prompt_token_ids" not in plain
    both = {"logprobs": True, "top_logprobs": 2}
    assert server.call("POST", "/v1/chat/completions", request | both)[0] == 400


def test_several_models_are_chosen_by_name(server):
    def ask(**more):
        body = {"messages": [{"role": "user", "content": "Hi"}], **more}
        return server.call("POST", "/v1/chat/completions", body)

    assert "sft answers" in ask(model="sft")[2] and "ppo answers" in ask(model="ppo")[2]
    status, _, body = ask(model="dpo")
    assert status == 404 and "'sft', 'ppo'" in body and "model_not_found" in body
    assert ask()[0] == 400
    listed = json.loads(server.call("GET", "/v1/models")[2])["data"]
    assert [one["id"] for one in listed] == ["sft", "ppo"]
    assert server.metric("qwen_jax_max_num_seqs") == 8  # of both


def test_package_data_has_every_file_of_the_page():
    root = pathlib.Path(__file__).resolve().parents[3]
    assert '"qwen_jax.serve.page": ["web/*", "web/vendor/*"]' in (root / "setup.py").read_text()
