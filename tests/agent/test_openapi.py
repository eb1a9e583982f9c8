"""Tools from OpenAPI documents, against a server on loopback."""

# ruff: noqa: E501  (a document as data)

import http.server
import json
import threading

import pytest
import yaml

from qwen_jax.agent import schema
from qwen_jax.agent.openapi import tools_from_openapi
from qwen_jax.agent.tool import Limits
from qwen_jax.errors import ConfigError

DOCUMENT = {
    "openapi": "3.0.3",
    "servers": [{"url": "http://{host}/v1", "variables": {"host": {"default": "127.0.0.1:1"}}}],
    "paths": {
        "/pets/{id}": {
            "parameters": [{"$ref": "#/components/parameters/Id"}],
            "get": {
                "operationId": "getPet",
                "summary": "Returns a pet.",
                "parameters": [
                    {"name": "fields", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "id", "in": "query", "schema": {"type": "integer", "nullable": True}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                    {"name": "session", "in": "cookie", "schema": {"type": "string"}},
                ],
            },
            "put": {
                "description": "Changes a pet.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                },
            },
        },
        "/tree": {
            "post": {
                "operationId": "tree",
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Tree"}}}},
            }
        },
        "/form": {
            "post": {
                "operationId": "form",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/x-www-form-urlencoded": {
                            "schema": {"type": "object", "properties": {"a": {"type": "string"}}}
                        }
                    },
                },
            }
        },
    },
    "components": {
        "parameters": {"Id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}},
        "schemas": {
            "Pet": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "age": {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
                },
            },
            "Tree": {"type": "object", "properties": {"left": {"$ref": "#/components/schemas/Tree"}}},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    """A server that answers with the request that it got."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            status = 302 if "moved" in self.path else 404 if "missing" in self.path else 200
            data = json.dumps(
                {
                    "request": f"{self.command} {self.path}",
                    "body": body,
                    "type": self.headers.get("Content-Type"),
                    "trace": self.headers.get("X-Trace"),
                    "key": self.headers.get("Authorization"),
                }
            ).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/v1/pets/stolen")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def tools(server):
    made = tools_from_openapi(DOCUMENT, base_url=server, headers={"Authorization": "Bearer k"})
    return {tool.name: tool for tool in made}


def call(tool, arguments):
    assert schema.problems(arguments, tool.parameters) == []
    return tool.run(arguments, Limits())


def test_tools_from_openapi_describe_the_operations(tools):
    assert list(tools) == ["getPet", "put_pets_id", "tree", "form"]
    get = tools["getPet"]
    assert get.description == "Returns a pet."
    assert get.parameters["required"] == ["id"]
    assert get.parameters["properties"]["query_id"] == {"type": ["integer", "null"]}
    assert "session" not in get.parameters["properties"]
    put = tools["put_pets_id"].parameters
    assert put["required"] == ["id", "name"]
    assert put["properties"]["age"] == {"type": "integer", "exclusiveMinimum": 0}
    assert schema.problems({"body": {"left": {"left": {}}}}, tools["tree"].parameters) == []
    assert schema.problems({"body": {"left": 3}}, tools["tree"].parameters)


def test_tools_from_openapi_send_requests(tools):
    found = json.loads(
        call(
            tools["getPet"],
            {"id": "a/b ?", "fields": ["x", "y&"], "query_id": 3, "X-Trace": "1\r\nEvil: 2"},
        ).text
    )
    assert found["request"] == "GET /v1/pets/a%2Fb%20%3F?fields=x&fields=y%26&id=3"
    assert (found["trace"], found["key"]) == ("1 Evil: 2", "Bearer k")
    found = json.loads(call(tools["getPet"], {"id": ".."}).text)
    assert found["request"] == "GET /v1/pets/%2E%2E"
    found = json.loads(call(tools["put_pets_id"], {"id": "7", "name": "Rex", "age": 3}).text)
    assert found["request"] == "PUT /v1/pets/7" and found["type"] == "application/json"
    assert json.loads(found["body"]) == {"name": "Rex", "age": 3}
    found = json.loads(call(tools["tree"], {"body": {"left": {}}}).text)
    assert json.loads(found["body"]) == {"left": {}}
    assert json.loads(call(tools["form"], {"a": "b c&"}).text)["body"] == "a=b+c%26"


def test_tools_from_openapi_report_errors_as_observations(tools):
    missing = call(tools["getPet"], {"id": "missing"})
    assert missing.is_error and missing.text.startswith("HTTP 404 Not Found: {")
    moved = call(tools["getPet"], {"id": "moved"})
    assert moved.is_error and moved.text.startswith("HTTP 302") and "stolen" not in moved.text
    (dead, *_) = tools_from_openapi(DOCUMENT, seconds=5.0)
    assert dead.run({"id": "1"}, Limits()).text.startswith("Error: the server does not answer")
    assert "no time is left" in tools["getPet"].run({"id": "1"}, Limits(deadline=0.0)).text


def test_tools_from_openapi_read_files(tmp_path):
    for name, text in (("a.yaml", yaml.safe_dump(DOCUMENT)), ("a.json", json.dumps(DOCUMENT))):
        (tmp_path / name).write_text(text)
        assert len(tools_from_openapi(tmp_path / name)) == 4
    with pytest.raises(ConfigError, match="cannot read"):
        tools_from_openapi(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"openapi": None, "swagger": "2.0"}, "not OpenAPI 3"),
        ({"servers": []}, "not the URL of a server"),
        ({"paths": {"/x": {"get": {"parameters": [{"$ref": "#/no/such"}]}}}}, "has no #/no/such"),
        ({"paths": {"/x": {"get": {"parameters": [{"$ref": "b.yaml#/x"}]}}}}, "cannot be resolved"),
        ({"paths": {"/x": {"post": {"requestBody": {"content": {"image/png": {}}}}}}}, "image/png"),
        (
            {"paths": {"/x": {"get": {"parameters": [{"name": "c", "in": "cookie", "required": True}]}}}},
            "in cookie, c",
        ),
    ],
)  # fmt: skip
def test_tools_from_openapi_refuse_by_name(change, says):
    with pytest.raises(ConfigError, match=says):
        tools_from_openapi({**DOCUMENT, **change})
