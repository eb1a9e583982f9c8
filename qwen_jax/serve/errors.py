"""Errors in OpenAI's format: a status, and {"error": {message, type, param, code}}."""

from qwen_jax.errors import QwenJaxError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(QwenJaxError):
    """The error response to a request that was rejected or failed.

    Args:
      what, fix: as in QwenJaxError; joined, they are the message for the client.
      where: the invalid parameter; empty if the error is not about a parameter.
      status: the HTTP status.
      code: a machine-readable error code.
      retry_after: seconds after which the client may retry; None: a retry cannot succeed.
    """

    def __init__(
        self,
        what: str,
        where: str = "",
        fix: str = "",
        *,
        status: int = 400,
        code: str = "invalid_value",
        retry_after: int | None = None,
    ):
        super().__init__(what, where, fix)
        self.status, self.code, self.retry_after = status, code, retry_after

    def body(self) -> dict:
        kind = (
            "server_error"
            if self.status >= 500
            else _TYPES.get(self.status, "invalid_request_error")
        )
        return {
            "error": {
                "message": f"{self.what} {self.fix}".strip(),
                "type": kind,
                "param": self.where or None,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def shutting_down() -> ApiError:
    return ApiError(
        "the server is shutting down.",
        fix="retry after it has restarted.",
        status=503,
        code="shutting_down",
        retry_after=5,
    )
