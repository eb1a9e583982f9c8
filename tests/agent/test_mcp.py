"""Tools of an MCP server: the SDK's own, on stdio and by HTTP."""

import pathlib
import socket
import subprocess
import sys
import time

import pytest

from qwen_jax.agent.mcp import MCPError, MCPServer
from qwen_jax.agent.tool import Limits
from qwen_jax.errors import ConfigError

SERVER = pathlib.Path(__file__).with_name("mcp_server.py")


def check_tools(server: MCPServer) -> None:
    tools = {tool.name: tool for tool in server.tools}
    assert set(tools) == {"add", "fail", "slow"}
    assert tools["add"].description == "Adds two numbers."
    assert tools["add"].parameters["required"] == ["a", "b"]
    result = tools["add"].run({"a": 2, "b": 3}, Limits())
    assert (result.text, result.is_error) == ("sum 5", False)
    failed = tools["fail"].run({}, Limits())
    assert failed.is_error and "broken" in failed.text
    begin = time.monotonic()
    late = tools["slow"].run({"seconds": 20}, Limits(deadline=begin + 0.5))
    assert late.is_error and "in time" in late.text and time.monotonic() - begin < 15


def test_mcp_without_the_sdk_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp.client.stdio", None)
    with pytest.raises(ConfigError, match=r"qwen_jax\[mcp\]"):
        MCPServer("true")


def test_mcp_on_stdio():
    pytest.importorskip("mcp", reason="the MCP SDK is not installed")
    with MCPServer(f"{sys.executable} {SERVER}") as server:
        check_tools(server)


def test_mcp_by_http():
    pytest.importorskip("mcp", reason="the MCP SDK is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = subprocess.Popen([sys.executable, str(SERVER), str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        with MCPServer(f"http://127.0.0.1:{port}/mcp") as server:
            check_tools(server)
    finally:
        program.kill()
        program.wait()


def test_mcp_reports_a_server_that_does_not_start():
    pytest.importorskip("mcp", reason="the MCP SDK is not installed")
    with pytest.raises(MCPError, match="does not answer"):
        MCPServer(f"{sys.executable} -c exit()")
    with pytest.raises(MCPError, match="does not answer"):
        MCPServer("no-such-program-anywhere")
