"""Tools from an OpenAPI 3 document: an operation is a tool, and a call is an HTTP request."""

import dataclasses
import http.client
import json
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from qwen_jax.agent.tool import Limits, Result, Tool
from qwen_jax.errors import ConfigError

_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_PLACES = ("path", "query", "header")
_MAX_ANSWER = 1 << 20  # bytes
_DEPTH = 12  # of a schema in a tool; deeper ones are any value
_BODY = "body"


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """Where an argument goes."""

    name: str  # in the request
    place: str  # path, query, header or body
    explode: bool = True


@dataclasses.dataclass(frozen=True)
class _Operation:
    method: str
    path: str
    parameters: Mapping[str, _Parameter]  # by argument
    form: bool = False  # whether the body is a form, not JSON


def tools_from_openapi(
    document: Mapping[str, Any] | str | os.PathLike,
    *,
    base_url: str | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 30.0,
) -> list[Tool]:
    """Returns a tool for each operation of a document.

    Parameters of path, query and header, and the fields of a JSON or form body, are the arguments.
    An answer other than 2xx is an observation with its status and text. Redirects are not followed,
    so that `headers` go to no other host.

    Args:
      document: OpenAPI 3.0 or 3.1, or the path of a .json or .yaml file.
      base_url: of the server; None: the document's first.
      headers: of every request, such as an API key.
      seconds: limit of a request.

    Raises:
      ConfigError: it is not such a document, or an operation needs what is not supported: a cookie,
        another kind of body, or a reference to another document. The error names it.
    """
    found = _read(document)
    version = str(found.get("openapi", ""))
    if not version.startswith("3."):
        raise ConfigError(
            f"the document is not OpenAPI 3: openapi is {version or 'missing'}.",
            "openapi",
            "convert it to OpenAPI 3; Swagger 2 is not read.",
        )
    base = base_url or _server(found)
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise ConfigError(
            f"{base!r} is not the URL of a server.", "base_url", "pass base_url='http://HOST/PATH'."
        )
    client = _Client(base.rstrip("/"), dict(headers or {}), seconds)
    return [_tool(found, *each, client) for each in _operations(found)]


def _read(document: Mapping[str, Any] | str | os.PathLike) -> Mapping[str, Any]:
    if isinstance(document, Mapping):
        return document
    try:
        found = yaml.safe_load(pathlib.Path(document).read_text(encoding="utf-8"))  # also JSON
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the document: {str(error)[:300]}.", str(document), "check the path."
        ) from None
    if not isinstance(found, Mapping):
        raise ConfigError("the document is not an object.", str(document), "check the file.")
    return found


def _server(document: Mapping[str, Any]) -> str:
    servers = document.get("servers") or [{}]
    url = str(servers[0].get("url", ""))
    for name, variable in (servers[0].get("variables") or {}).items():
        url = url.replace(f"{{{name}}}", str(variable.get("default", "")))
    return url


def _operations(
    document: Mapping[str, Any],
) -> Iterator[tuple[str, str, Mapping[str, Any], list[Mapping[str, Any]]]]:
    for path, item in (document.get("paths") or {}).items():
        item = _resolved(document, item)
        shared = item.get("parameters") or []
        for method in _METHODS:
            if isinstance(operation := item.get(method), Mapping):
                own = [_resolved(document, one) for one in operation.get("parameters") or []]
                keys = {(one["name"], one["in"]) for one in own}
                inherited = [_resolved(document, one) for one in shared]
                inherited = [one for one in inherited if (one["name"], one["in"]) not in keys]
                yield path, method, operation, [*inherited, *own]


def _tool(
    document: Mapping[str, Any],
    path: str,
    method: str,
    operation: Mapping[str, Any],
    parameters: list[Mapping[str, Any]],
    client: "_Client",
) -> Tool:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", operation.get("operationId") or f"{method}{path}")
    name, where = name.strip("_")[:64], f"{method.upper()} {path}"
    properties: dict[str, Any] = {}
    required, places = [], {}
    for one in parameters:
        if one["in"] not in _PLACES:
            if one.get("required"):
                raise _unsupported(f"a parameter in {one['in']}, {one['name']}", where)
            continue
        if "schema" not in one and one.get("required"):
            raise _unsupported(f"a parameter without a schema, {one['name']}", where)
        argument = one["name"] if one["name"] not in properties else f"{one['in']}_{one['name']}"
        schema = _inlined(document, one.get("schema") or {}, where)
        described = {"description": one["description"]} if one.get("description") else {}
        properties[argument] = {**schema, **described}
        places[argument] = _Parameter(one["name"], one["in"], one.get("explode", True))
        if one.get("required") or one["in"] == "path":
            required.append(argument)
    form = _add_body(document, operation, where, properties, required, places)
    made = _Operation(method, path, places, form)
    texts = (operation.get("summary"), operation.get("description"))
    description = " ".join(dict.fromkeys(" ".join(text.split()) for text in texts if text))
    return Tool(
        name,
        description or where,
        lambda arguments, limits: client.call(made, arguments, limits),
        {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
        concurrent=method == "get",
    )


def _add_body(document, operation, where, properties, required, places) -> bool:
    """Adds the fields of the body, or the argument `body`; returns whether it is a form."""
    if not (body := operation.get("requestBody")):
        return False
    body = _resolved(document, body)
    content = body.get("content") or {}
    kinds = [kind for kind in content if kind.split(";")[0].strip().endswith(("/json", "+json"))]
    form = "application/x-www-form-urlencoded"
    if not kinds and form not in content:
        raise _unsupported(f"a body of the type {', '.join(content) or 'nothing'}", where)
    schema = _inlined(document, content[kinds[0] if kinds else form].get("schema") or {}, where)
    fields = schema.get("properties")
    flat = fields and not set(fields) & set(properties) and set(schema) <= _FLAT
    if flat and body.get("required", False):
        properties |= fields
        required += schema.get("required", [])
        places |= {name: _Parameter(name, "field") for name in fields}
    else:
        properties[_BODY if _BODY not in properties else "request_body"] = schema
        argument = next(reversed(properties))
        places[argument] = _Parameter(argument, "body")
        required += [argument] * bool(body.get("required"))
    return not kinds


_FLAT = {
    "type",
    "properties",
    "required",
    "title",
    "description",
    "example",
    "additionalProperties",
}


def _resolved(document: Mapping[str, Any], value: Any) -> Any:
    """Returns what a reference of the document refers to, or the value itself."""
    seen = set()
    while isinstance(value, Mapping) and isinstance(reference := value.get("$ref"), str):
        if not reference.startswith("#/") or reference in seen:
            raise ConfigError(
                f"the reference {reference[:100]!r} cannot be resolved.",
                "openapi",
                "bundle the document into one file without circular references.",
            )
        seen.add(reference)
        value = document
        for part in reference[2:].split("/"):
            part = urllib.parse.unquote(part).replace("~1", "/").replace("~0", "~")
            if not isinstance(value, Mapping) or part not in value:
                raise ConfigError(
                    f"the document has no {reference[:100]}.",
                    "openapi",
                    "add it, or remove the reference.",
                )
            value = value[part]
    return value


def _inlined(document: Mapping[str, Any], schema: Any, where: str, depth: int = 0) -> Any:
    """Returns a schema without references; a recursive one ends with any value."""
    if depth > _DEPTH:
        return {}
    schema = _resolved(document, schema)
    if isinstance(schema, list):
        return [_inlined(document, one, where, depth + 1) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            found[key] = {
                name: _inlined(document, one, where, depth + 1) for name, one in value.items()
            }
        elif isinstance(value, Mapping | list) and key not in ("enum", "const", "default"):
            if key not in ("example", "examples", "xml", "externalDocs", "discriminator"):
                found[key] = _inlined(document, value, where, depth + 1)
        elif key not in ("example", "nullable"):
            found[key] = value
    if schema.get("nullable") and isinstance(found.get("type"), str):  # OpenAPI 3.0
        found["type"] = [found["type"], "null"]
    for old, new in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(found.get(old), bool):  # OpenAPI 3.0 has it as a mark of the limit
            if found.pop(old) and new in found:
                found[old] = found.pop(new)
    return found


def _unsupported(what: str, where: str) -> ConfigError:
    return ConfigError(
        f"the operation needs {what}, which is not supported.",
        where,
        "remove the operation from the document.",
    )


class _Client:
    def __init__(self, base: str, headers: dict[str, str], seconds: float):
        self._base, self._headers, self._seconds = base, headers, seconds
        local = urllib.parse.urlsplit(base).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def call(self, operation: _Operation, arguments: dict[str, Any], limits: Limits) -> Result:
        """Sends the request of a call; returns the answer's text, or what went wrong."""
        seconds = limits.seconds(self._seconds)
        if seconds <= 0:
            return Result("Error: no time is left for a request.", is_error=True)
        try:
            with self._opener.open(self._request(operation, arguments), timeout=seconds) as answer:
                status, text = answer.status, _text(answer)
        except urllib.error.HTTPError as error:
            with error:
                return Result(f"HTTP {error.code} {error.reason}: {_text(error)}", is_error=True)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            return Result(f"Error: the server does not answer: {reason}.", is_error=True)
        return Result(text or f"HTTP {status}, without content")

    def _request(self, operation: _Operation, arguments: dict[str, Any]) -> urllib.request.Request:
        path, query, fields, body = operation.path, [], {}, None
        headers = dict(self._headers)
        for argument, value in arguments.items():
            one = operation.parameters[argument]
            if one.place == "path":
                quoted = urllib.parse.quote(_plain(value), safe="")
                # A segment of dots would lead to another path.
                quoted = quoted.replace(".", "%2E") if set(quoted) <= {"."} else quoted
                path = path.replace(f"{{{one.name}}}", quoted)
            elif one.place == "query":
                query += _query(one, value)
            elif one.place == "header":
                headers[one.name] = re.sub(r"[\r\n]+", " ", _plain(value))
            elif one.place == "field":
                fields[one.name] = value
            else:
                body = value
        if fields:
            body = fields
        url = self._base + path + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None
        if body is not None and operation.form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            data = urllib.parse.urlencode(
                {key: _plain(value) for key, value in body.items()}
            ).encode()
        elif body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, ensure_ascii=False).encode()
        headers.setdefault("Accept", "application/json, text/*;q=0.9, */*;q=0.1")
        return urllib.request.Request(url, data, headers, method=operation.method.upper())


def _query(parameter: _Parameter, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list):
        texts = [_plain(one) for one in value]
        if parameter.explode:
            return [(parameter.name, text) for text in texts]
        return [(parameter.name, ",".join(texts))]
    return [(parameter.name, _plain(value))]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _text(answer: Any) -> str:
    data = answer.read(_MAX_ANSWER + 1)
    charset = answer.headers.get_content_charset() or "utf-8"
    try:
        text = data[:_MAX_ANSWER].decode(charset, errors="replace")
    except LookupError:
        text = data[:_MAX_ANSWER].decode(errors="replace")
    return f"{text}\n[the rest is left out]" if len(data) > _MAX_ANSWER else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: it could take a key to another host."""

    def redirect_request(self, *_):
        return None
