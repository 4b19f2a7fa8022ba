"""Ships the services' log files to CloudWatch Logs, as they grow."""

import logging
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_logs.type_defs import InputLogEventTypeDef

_LOG = logging.getLogger(__name__)

# PutLogEvents limits: 1 MiB and 10,000 events a batch, 26 bytes of overhead an event
# (https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutLogEvents.html).
_MAX_LINE_BYTES = 16 << 10
_MAX_BATCH_BYTES = 256 << 10  # each invalid byte becomes three, so a batch is at most 768 KiB and its overhead
_MAX_BATCH_LINES = 5_000
_INTERVAL_SECONDS = 2.0
#: stunnel's own level 6 has one line for each step of each connection; only level 5 and more severe is shipped. The
#: pattern starts at stunnel's time stamp: what a peer can get into a line must not hide the line.
STUNNEL_NOISE = re.compile(rb"\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d LOG[67]\[")


class Tail:
    """Reads what has been appended to a file since the last call, or since its byte `start`, in whole lines."""

    def __init__(self, path: Path, noise: re.Pattern[bytes] | None = None, start: int = 0) -> None:
        self._path = path
        self._noise = noise
        self._offset = start

    def lines(self, *, all_of_it: bool = False) -> list[bytes] | None:
        """Return the next complete lines, at most one batch of them, or None if there are none yet.

        With `all_of_it` an unfinished last line counts as complete. A batch may be empty: noise is left out.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_MAX_BATCH_BYTES)
        except FileNotFoundError:
            return None
        end = len(data) if all_of_it or len(data) == _MAX_BATCH_BYTES else data.rfind(b"\n") + 1
        lines = data[:end].splitlines(keepends=True)[:_MAX_BATCH_LINES]
        if not lines:
            return None
        self._offset += sum(map(len, lines))
        return [line.rstrip()[:_MAX_LINE_BYTES] for line in lines if line.strip() and not self._is_noise(line)]

    def _is_noise(self, line: bytes) -> bool:
        return self._noise is not None and self._noise.match(line) is not None


class LogShipper(threading.Thread):
    """Sends the named services' logs to streams `<prefix>/<service><suffix>` until `finish` is called.

    A log is sent from its byte in `starts` on, by default from the first. Losing a log line never fails a job: an
    error is logged locally and the next batch is tried.
    """

    def __init__(
        self,
        logs: "CloudWatchLogsClient",
        group: str,
        prefix: str,
        files: dict[str, Path],
        *,
        starts: Mapping[str, int] = MappingProxyType({}),
        suffix: str = "",
    ) -> None:
        super().__init__(name="logship", daemon=True)
        self._logs = logs
        self._group = group
        noise = {"tunnel": STUNNEL_NOISE}
        self._tails = {
            f"{prefix}/{service}{suffix}": Tail(path, noise.get(service), starts.get(service, 0))
            for service, path in files.items()
        }
        self._created: set[str] = set()
        self._complained: set[str] = set()
        self._stop_requested = threading.Event()

    def run(self) -> None:
        """Ship until told to stop; then ship what is left."""
        while not self._stop_requested.wait(_INTERVAL_SECONDS):
            self._ship()
        self._ship(all_of_it=True)

    def finish(self) -> None:
        """Ship what is left and return, within 10 s."""
        self._stop_requested.set()
        self.join(timeout=10)

    def _ship(self, *, all_of_it: bool = False) -> None:
        for stream, tail in self._tails.items():
            while (lines := tail.lines(all_of_it=all_of_it)) is not None:
                if lines:
                    self._send(stream, lines)

    def _send(self, stream: str, lines: list[bytes]) -> None:
        now = int(time.time() * 1000)
        events: list[InputLogEventTypeDef] = [
            {"timestamp": now, "message": line.decode("utf-8", "replace")} for line in lines
        ]
        try:
            if stream not in self._created:
                self._create(stream)
            self._logs.put_log_events(logGroupName=self._group, logStreamName=stream, logEvents=events)
        except (BotoCoreError, ClientError) as error:
            if stream not in self._complained:  # once: this line is itself shipped
                self._complained.add(stream)
                _LOG.warning("log lines of %s were not shipped: %s", stream, error)

    def _create(self, stream: str) -> None:
        try:
            self._logs.create_log_stream(logGroupName=self._group, logStreamName=stream)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceAlreadyExistsException":
                raise
        self._created.add(stream)
