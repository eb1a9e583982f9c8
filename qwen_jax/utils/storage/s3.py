"""Amazon S3 and servers that speak its protocol, by boto3. AWS_ENDPOINT_URL names another server.

A generation is an ETag, the hash of the contents: it is the same for the same contents, so what is
compared (locks, markers) has a unique token in it.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from qwen_jax.utils.storage.client import ABSENT, Info
from qwen_jax.utils.storage.failures import Conflict, Denied, Missing, Transient, missing_library
from qwen_jax.utils.storage.path import StoragePath

_CONNECT_SECONDS, _READ_SECONDS = 10, 60
_CONNECTIONS = 64
_PART_BYTES = 32 << 20
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_THROTTLED = ("SlowDown", "Throttling", "RequestTimeout", "InternalError", "ServiceUnavailable")
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")
_LOGIN = "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."


class S3Client:
    """Implements client.Client."""

    def __init__(self, root: StoragePath):
        try:
            import boto3  # pyright: ignore[reportMissingImports]
            from boto3.s3.transfer import TransferConfig  # pyright: ignore[reportMissingImports]
            from botocore.config import Config  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise missing_library("boto3", "s3", str(root)) from error
        self._root = root
        style = "path" if any(map(os.environ.get, _ENDPOINTS)) else "auto"
        self._transfer = TransferConfig(
            multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES
        )
        self._client = boto3.Session().client(
            "s3",
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"total_max_attempts": 1},  # Store tries again
                max_pool_connections=_CONNECTIONS,
                s3={"addressing_style": style},
            ),
        )

    def get(self, key: str, start: int, stop: int | None) -> bytes:
        bounds = {} if start == 0 and stop is None else {"Range": f"bytes={start}-{_last(stop)}"}
        with self._failures():
            try:
                found = self._client.get_object(Bucket=self._root.bucket, Key=key, **bounds)
            except self._client.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") == "InvalidRange":  # beyond the end
                    return b""
                raise
            return found["Body"].read()

    def put(self, key: str, content: bytes, expect: str | None) -> str:
        condition = {}
        if expect is not None:
            condition = {"IfNoneMatch": "*"} if expect == ABSENT else {"IfMatch": expect}
        with self._failures():
            found = self._client.put_object(
                Bucket=self._root.bucket, Key=key, Body=content, **condition
            )
        return found["ETag"]

    def put_file(self, key: str, file: pathlib.Path) -> None:
        with self._failures():
            self._client.upload_file(str(file), self._root.bucket, key, Config=self._transfer)

    def get_file(self, key: str, file: pathlib.Path) -> None:
        with self._failures():
            self._client.download_file(self._root.bucket, key, str(file), Config=self._transfer)

    def head(self, key: str) -> Info:
        with self._failures():
            found = self._client.head_object(Bucket=self._root.bucket, Key=key)
        return Info(key, found["ContentLength"], found["ETag"], found["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[Info]:
        with self._failures():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._root.bucket, Prefix=prefix):
                for each in page.get("Contents", ()):
                    yield Info(
                        each["Key"], each["Size"], each["ETag"], each["LastModified"].timestamp()
                    )

    def remove(self, key: str) -> None:
        with self._failures():
            self._client.delete_object(Bucket=self._root.bucket, Key=key)

    def copy(self, key: str, to: str) -> None:
        source = {"Bucket": self._root.bucket, "Key": key}
        with self._failures():
            self._client.copy(source, self._root.bucket, to)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Translates the errors of boto3."""
        from boto3.exceptions import Boto3Error  # pyright: ignore[reportMissingImports]
        from botocore import exceptions as aws  # pyright: ignore[reportMissingImports]

        try:
            yield
        except aws.ClientError as error:
            raise self._failure(error) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
            raise Denied("there are no credentials for S3.", _LOGIN) from error
        except aws.ParamValidationError as error:
            raise Denied(str(error), "check the address.") from error
        except Boto3Error as error:  # of uploads, with the reason as its cause
            cause = error.__cause__ or error.__context__
            if isinstance(cause, aws.ClientError):
                raise self._failure(cause) from error
            raise Transient(str(error)) from error
        except (aws.BotoCoreError, ConnectionError, TimeoutError) as error:
            raise Transient(f"{type(error).__name__}: {error}"[:300]) from error

    def _failure(self, error) -> Exception:
        response = error.response
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        reason, bucket = str(error).splitlines()[0][:300], self._root.bucket
        if code in _CONFLICTS or status == 412 or (status == 409 and "Conditional" in code):
            return Conflict(reason)
        if code == "NoSuchBucket":
            return Denied(
                f"the bucket s3://{bucket} does not exist.",
                f"check its name and region, or create it: aws s3 mb s3://{bucket}",
            )
        if status == 404:
            return Missing(2, "no such object", str(self._root))
        if code in _THROTTLED or status in (408, 429) or status >= 500:
            return Transient(reason)
        if status in (401, 403):
            return Denied(
                reason,
                f"allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on {bucket} "
                "to this account, or use another bucket.",
            )
        return Denied(reason, "check the address and the region.")


def _last(stop: int | None) -> str:
    return "" if stop is None else str(stop - 1)
