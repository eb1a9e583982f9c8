"""An MCP server of the SDK, for tests: `python mcp_server.py` on stdio, or with a port, on HTTP."""

import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("test")


@server.tool()
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return f"sum {a + b}"


@server.tool()
def fail() -> str:
    """Fails."""
    raise ToolError("broken")


@server.tool()
def slow(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return "done"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run()
