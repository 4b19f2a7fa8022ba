"""The jobs bucket as the node sees it: documents in, documents out."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import ClientError

from holdfast_node.contract.documents import Document

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

D = TypeVar("D", bound=Document)
_MISSING = {"NoSuchKey", "404"}
_DENIED = "AccessDenied"


class Store:
    """Reads and writes documents in one bucket. What is encrypted, and with which key, is the bucket's default."""

    def __init__(self, s3: "S3Client", bucket: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._denial = ""

    @property
    def denial(self) -> str:
        """What S3 said when it last denied a read, to be added to a message about a missing object; else empty.

        S3 answers AccessDenied, not NoSuchKey, for a missing object where the caller may not list the bucket, and
        nodes may not (https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html, "Permissions"). So a denial
        may be either.
        """
        return f" (S3 last denied a read: {self._denial})" if self._denial else ""

    def read(self, key: str, limit_bytes: int = 1 << 20) -> bytes | None:
        """Return the object's bytes (at most `limit_bytes` of them), or None if there is no such object."""
        try:
            with contextlib.closing(self._s3.get_object(Bucket=self._bucket, Key=key)["Body"]) as body:
                return body.read(limit_bytes)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == _DENIED:
                self._denial = error.response["Error"].get("Message", code)
            elif code not in _MISSING:
                raise
            return None

    def load(self, kind: type[D], key: str) -> D | None:
        """Return the document at `key`, or None if there is none; raises DocumentError if it is malformed."""
        data = self.read(key)
        return None if data is None else kind.parse(data)

    def save(self, key: str, document: Document | bytes) -> None:
        """Write a document (or JSON bytes), replacing what is there."""
        body = document if isinstance(document, bytes) else document.to_json()
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="application/json")

    def download(self, key: str, limit_bytes: int) -> bytes | None:
        """Return a large object's bytes, one more than `limit_bytes` at most, or None if there is none."""
        return self.read(key, limit_bytes + 1)

    def changed_since(self, prefix: str, since: datetime) -> Iterator[tuple[str, datetime]]:
        """Yield key and time of change of what was written below `prefix` at `since` or later."""
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                if item["LastModified"] >= since:
                    yield item["Key"], item["LastModified"]
