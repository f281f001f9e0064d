"""A place in S3-compatible object storage: whole objects in and out, in a bounded time.

What is known to go wrong on the way, a store that is busy, silent or gone for a moment, a body cut
short, is tried again here and nowhere else; botocore's own retries are off. No error names an
object: the key of a scan may name a patient.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import botocore.loaders
import botocore.session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.httpsession import URLLib3Session
from botocore.parsers import ResponseParserError
from botocore.response import StreamingBody
from botocore.utils import get_environ_proxies, percent_encode

from dyefreenet.config import store_patience

TRIES = 3  # at least, however long each takes
LONGEST_PAUSE = 3.0  # seconds
IS_THERE = "the object is there already"
LARGEST = 5 * 2**30  # bytes that S3 takes in one request
SMALL = 8 * 2**20  # bytes; what is larger goes up by the client, which asks first (Expect)
NOTHING = hashlib.sha256().hexdigest()
KEYS_SET = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL off AWS)"

_BROKEN_ON_THE_WAY = (
    ConnectionError,
    HTTPClientError,  # no answer in time, connection broken
    IncompleteReadError,
    FlexibleChecksumError,
    ResponseParserError,
)
_PASSING = {  # answers with a status below 500 that another try may change
    "RequestTimeout",
    "SlowDown",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",
    "OperationAborted",
}
_HINTS = {
    "InvalidAccessKeyId": KEYS_SET,
    "SignatureDoesNotMatch": KEYS_SET,
    "InvalidToken": KEYS_SET,
    "ExpiredToken": "renew the credentials, or AWS_SESSION_TOKEN among them",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AccessDenied": "these credentials may not do this here: use others, or another place",
    "403": "these credentials may not do this here: use others, or another place",
    "NoSuchBucket": "make the bucket, or name another",
}

_MD5 = re.compile("[0-9a-f]{32}")
_WHERE = "dyefreenet-asks-where-this-would-go"  # a key; no request for it is sent
_XML_CODE = re.compile(rb"<Code>(\w+)</Code>")

T = TypeVar("T")


@dataclass(frozen=True)
class Bucket:
    """Objects below ``s3://{name}/{prefix}``; errors are ``OSError`` in words that name none."""

    name: str
    prefix: str

    def get(self, name: str, first: int | None = None) -> tuple[bytes, str, str]:
        """Content of an object, its SHA-256, and the one that ``put`` left with it.

        "" for the first: it was not asked for; for the last: another wrote it. What came over the
        wire is checked by the checksum that the store has, or else by the ETag where that is an
        MD5: not of an upload in parts, nor of one that was encrypted with a key of its own.

        Args:
            first: Bytes wanted from the beginning; None: all.

        Raises:
            FileNotFoundError: There is none.
        """
        if first is None:
            asked = {"x-amz-checksum-mode": "ENABLED"}
        else:
            asked = {"Range": f"bytes=0-{first - 1}"}

        def read() -> tuple[bytes, str, str]:
            content, about = self._get(self._key(name), asked)
            kept = about.get("x-amz-meta-sha256", "")
            if first is not None:
                return content, "", kept
            known = kept or "x-amz-checksum-sha256" in about
            digest = hashlib.sha256(content) if known else None
            _require_sums(content, digest, about, by_etag=not kept)
            return content, digest.hexdigest() if digest else "", kept

        return _answer(read)

    def _get(self, key: str, asked: dict[str, str]) -> tuple[bytes, Mapping[str, str]]:
        """Content of an object and headers of the answer, their names in small letters."""
        answer = _connection().send("GET", self.name, key, asked)
        if answer is not None:
            content, about = answer
            if "content-length" in about:
                return _whole(content, int(about["content-length"])), about
        try:
            part = {"Range": asked["Range"]} if "Range" in asked else {}
            told = _client().get_object(Bucket=self.name, Key=key, **part)
        except ClientError as error:
            if _code(error) == "InvalidRange":  # the first bytes of an empty object
                return b"", {}
            raise
        content = told["Body"].read()
        _whole(content, told.get("ContentLength", len(content)))  # "chunked" has none
        return content, told["ResponseMetadata"]["HTTPHeaders"]

    def put(self, name: str, content: bytes, new: bool = False) -> str:
        """Put an object, know that the store has received these very bytes; their SHA-256.

        It appears when its upload is complete. The store is told the SHA-256 and refuses other
        bytes; one that does not say that it has looked is read back.

        Raises:
            FileExistsError: ``new``, and there is one already.
        """
        if len(content) > LARGEST:
            raise OSError(f"{len(content)} bytes; an object holds up to {LARGEST}")
        digest = hashlib.sha256(content)
        checksum = base64.b64encode(digest.digest()).decode()
        asked = {"x-amz-meta-sha256": digest.hexdigest(), "x-amz-checksum-sha256": checksum}
        if new:
            asked["If-None-Match"] = "*"

        def write() -> str | None:
            """The checksum that the store says it has found."""
            if len(content) <= SMALL:
                answer = _connection().send(
                    "PUT", self.name, self._key(name), asked, content, digest.hexdigest()
                )
                if answer is not None:
                    return answer[1].get("x-amz-checksum-sha256")
            told = _client().put_object(
                Bucket=self.name,
                Key=self._key(name),
                Body=content,
                ChecksumSHA256=checksum,
                Metadata={"sha256": digest.hexdigest()},
                **({"IfNoneMatch": "*"} if new else {}),
            )
            return told.get("ChecksumSHA256")

        try:
            found = _answer(write)
        except OSError as error:
            if not new or error.errno != errno.ENOTSUP:
                raise
            if self.exists(name):  # no conditions in this store: the best that is left
                raise FileExistsError(IS_THERE) from None
            return self.put(name, content)
        if found != checksum and self.get(name)[0] != content:
            raise OSError("other bytes than were written; write them again")
        return digest.hexdigest()

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name, or any below it."""
        key = self._key(name)
        try:
            if key:
                self._ask("head_object", Key=key)
            else:
                self._ask("list_objects_v2", MaxKeys=1)
            return True
        except FileNotFoundError:
            below = self._ask("list_objects_v2", Prefix=f"{key}/", MaxKeys=1)
            return bool(below.get("Contents"))

    def entries(self) -> Iterator[tuple[str, str]]:
        """Names of all objects below, and for each what changes with its content."""
        start = f"{self.prefix}/" if self.prefix else ""
        for entry in self._listed(start):
            if not entry["Key"].endswith("/"):
                yield entry["Key"].removeprefix(start), f"{entry['Size']}-{entry['ETag']}"

    def remove(self, name: str) -> None:
        self._ask("delete_object", Key=self._key(name))

    def clear(self) -> None:
        """Remove all objects below."""
        start = f"{self.prefix}/" if self.prefix else ""
        keys = [entry["Key"] for entry in self._listed(start)]
        for at in range(0, len(keys), 1000):  # as many as one request takes
            objects = [{"Key": key} for key in keys[at : at + 1000]]
            answer = self._ask("delete_objects", Delete={"Objects": objects, "Quiet": True})
            for error in answer.get("Errors", []):
                raise OSError(_text(str(error.get("Code"))))

    def _key(self, name: str) -> str:
        return "/".join(filter(None, (self.prefix, name)))

    def _listed(self, start: str) -> Iterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=start, **after)
            yield from page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def _ask(self, operation: str, **values: Any) -> dict[str, Any]:
        return _answer(lambda: getattr(_client(), operation)(Bucket=self.name, **values))


def _require_sums(
    content: bytes, sha256: hashlib._Hash | None, about: Mapping[str, str], by_etag: bool
) -> None:
    """That the content is what the headers of its answer tell of."""
    said = about.get("x-amz-checksum-sha256", "-")
    found = sha256.digest() if sha256 else b""
    if "-" in said:  # none, or of an upload in parts
        said = about.get("x-amz-checksum-crc32", "-")
        found = b"" if "-" in said else zlib.crc32(content).to_bytes(4, "big")
    if "-" not in said:
        if base64.b64encode(found).decode() != said:
            raise FlexibleChecksumError(error_msg="other bytes than the checksum tells of")
        return
    etag = about.get("etag", "").strip('"')
    has_key = "x-amz-server-side-encryption-customer-algorithm" in about or (
        "kms" in about.get("x-amz-server-side-encryption", "")
    )
    if not by_etag or has_key or not _MD5.fullmatch(etag):
        return
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != etag:
        raise FlexibleChecksumError(error_msg="other bytes than the ETag tells of")


def _whole(content: bytes, expected: int) -> bytes:
    if len(content) != expected:
        raise IncompleteReadError(actual_bytes=len(content), expected_bytes=expected)
    return content


def _answer(call: Callable[[], T]) -> T:
    """What a call returns, tried again for as long as patience lasts.

    Raises:
        FileNotFoundError: No such object.
        FileExistsError: It was to be new and is there.
        OSError: The store refuses, or there was no good answer; with what to do about it.
    """
    patience, began, tries = store_patience(), time.monotonic(), 0
    while True:
        try:
            return call()
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            tries += 1
            spent = time.monotonic() - began
            if not _may_pass(error):
                raise _refusal(error) from None
            if tries >= TRIES and spent >= patience:
                raise OSError(
                    f"no good answer in {spent:.0f} s and {tries} tries ({_code(error)}); look "
                    "whether the store is up, and at AWS_ENDPOINT_URL"
                ) from None
        time.sleep(min(0.1 * 2**tries, LONGEST_PAUSE) * random.uniform(0.5, 1.0))


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        passing = status in (408, 429) or (status >= 500 and status != 501)
        return passing or _code(error) in _PASSING
    return isinstance(error, _BROKEN_ON_THE_WAY)


def _refusal(error: Exception) -> OSError:
    code = _code(error)
    if code in ("NoSuchKey", "NotFound", "404"):
        return FileNotFoundError("no such object")
    if code in ("PreconditionFailed", "412"):
        return FileExistsError(IS_THERE)
    if code == "NotImplemented":
        return OSError(errno.ENOTSUP, "the store cannot do this")
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return OSError(f"no credentials; {KEYS_SET}")
    return OSError(_text(code))


def _code(error: Exception) -> str:
    """A word for an error; what stores and botocore say at length has the key in it."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code"))
    return type(error).__name__


def _text(code: str) -> str:
    return f"{code}; {_HINTS[code]}" if code in _HINTS else code


class _Signature(S3SigV4Auth):
    """Of a request whose content's SHA-256 is known."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["sha256"])


@dataclass(frozen=True)
class _Connection:
    """botocore's client, and what it is made of where a million small objects need less of it.

    Attributes:
        credentials: None where there are none; the client says what to do about it.
        bases: Addresses of the buckets asked so far; "": only the client knows where it is.
    """

    client: Any
    credentials: Any
    session: URLLib3Session
    bases: dict[str, str] = field(default_factory=dict)

    def send(
        self,
        method: str,
        bucket: str,
        key: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
        sha256: str = NOTHING,
    ) -> tuple[bytes, Mapping[str, str]] | None:
        """Content and headers of the good answer to a request, in half of the client's time.

        None where this is not all that it takes: ask the client, which understands any answer.

        Args:
            sha256: Of the content, in hex.
        """
        if self.credentials is None:
            return None
        if bucket not in self.bases:
            self.bases[bucket] = self._base(bucket)
        if not self.bases[bucket]:
            return None
        address = self.bases[bucket] + percent_encode(key, safe="/~")
        request = AWSRequest(
            method, address, headers=dict(headers), data=content, stream_output=True
        )
        request.context["sha256"] = sha256
        credentials = self.credentials.get_frozen_credentials()
        _Signature(credentials, "s3", self.client.meta.region_name).add_auth(request)
        answer = self.session.send(request.prepare())
        found = StreamingBody(answer.raw, None).read()  # at once, where the client takes 64 KB each
        if answer.status_code in (200, 206):
            return found, answer.headers
        status, code = answer.status_code, _XML_CODE.search(found)
        if status == 429 or (status >= 500 and status != 501):  # busy: not the time to ask twice
            words = code[1].decode() if code else str(status)
            error = {"Error": {"Code": words}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(error, method)
        other_region = status == 400 and code and code[1] == b"AuthorizationHeaderMalformed"
        if other_region or status in (301, 307):
            self.bases[bucket] = ""
        return None

    def _base(self, bucket: str) -> str:
        """Address that the client has for a bucket, to the letter.

        What it presigns goes to the global host of AWS, which a private network may not know.
        """
        told = self.client.head_object(Bucket=bucket, Key=_WHERE)
        return str(told["ResponseMetadata"]["HTTPHeaders"]["url"]).removesuffix(_WHERE)


def _unsent(request: Any, **_: Any) -> AWSResponse | None:
    """In place of what a server would say to ``_base``, the address that it was to go to."""
    if not request.url.endswith(f"/{_WHERE}"):
        return None
    return AWSResponse(request.url, 200, {"url": request.url}, _Nothing())


class _Nothing(io.BytesIO):
    """The body of an answer that nobody sent."""

    def stream(self) -> Iterator[bytes]:
        yield b""


def _client() -> Any:
    return _connection().client


def _connection() -> _Connection:
    """This process's connection; another one once the environment says something else."""
    said = tuple((k, v) for k, v in sorted(os.environ.items()) if k.startswith("AWS_"))
    return _connect(os.getpid(), said, store_patience())


@lru_cache(maxsize=4)
def _connect(process: int, said: tuple[tuple[str, str], ...], patience: float) -> _Connection:
    silence = patience / 4  # so that a server that never answers is asked more than once
    config = Config(
        signature_version="s3v4",
        connect_timeout=min(silence, 5.0),
        read_timeout=silence,
        retries={"total_max_attempts": 1},
        max_pool_connections=16,
    )
    session = botocore.session.Session()
    session.register_component("data_loader", _loader())
    try:
        client = session.create_client("s3", config=config)
    except ValueError as error:
        raise OSError(f"{error}; look at AWS_ENDPOINT_URL") from None
    client.meta.events.register_first("before-send.s3", _unsent)
    http = URLLib3Session(
        verify=session.get_config_variable("ca_bundle") or True,
        proxies=get_environ_proxies(client.meta.endpoint_url),
        timeout=(config.connect_timeout, config.read_timeout),
        max_pool_connections=config.max_pool_connections,
    )
    return _Connection(client, session.get_credentials(), http)


@lru_cache(maxsize=1)
def _loader() -> Any:
    """What botocore knows of S3, read once: it takes a second."""
    return botocore.loaders.create_loader()
