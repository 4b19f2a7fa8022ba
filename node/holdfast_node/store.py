"""The jobs bucket as the node sees it: documents in, documents out."""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import ClientError

from holdfast_node.contract.documents import Document

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

D = TypeVar("D", bound=Document)
# S3 answers AccessDenied, not NoSuchKey, for a missing object where the caller may not list the bucket
# (https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html, "Permissions"), and nodes may not.
_MISSING = {"NoSuchKey", "404", "AccessDenied"}


class Store:
    """Reads and writes documents in one bucket. What is encrypted, and with which key, is the bucket's default."""

    def __init__(self, s3: "S3Client", bucket: str) -> None:
        self._s3 = s3
        self._bucket = bucket

    def read(self, key: str, limit_bytes: int = 1 << 20) -> bytes | None:
        """Return the object's bytes (at most `limit_bytes` of them), or None if there is no such object."""
        try:
            return self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read(limit_bytes)
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return None
            raise

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

    def changed_since(self, prefix: str, since: datetime) -> Iterator[str]:
        """Yield the keys below `prefix` that were written at `since` or later."""
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                if item["LastModified"] >= since:
                    yield item["Key"]
