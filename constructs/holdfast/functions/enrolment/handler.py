"""The enrolment function: gives a node of the cluster a certificate, on AWS's word about who it is.

Event: `{"csr": PEM, "proof": {"query": {…}, "headers": {…}}}`, see `proof`. Answer: see `service`. Entry point:
`handler.handler`, on AWS Lambda with Python 3.11. What it may do is in `holdfast.enrolment`.
"""

import functools
import json
import os
from datetime import UTC, datetime
from typing import Any

import boto3
from authority import Authority
from botocore.config import Config
from configuration import Settings, read_settings
from private_ca import PrivateAuthority
from rotation import Rotation
from service import Enrolment, Issuer
from sts import call_sts

_CONFIG = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"})


def handler(event: object, context: object) -> dict[str, Any]:
    """Return the answer to one enrolment."""
    return _enrolment().respond(event)


@functools.cache
def _enrolment() -> Enrolment:
    # Older SDKs send three regions' STS traffic to the global endpoint; nodes sign for the regional one.
    os.environ.setdefault("AWS_STS_REGIONAL_ENDPOINTS", "regional")
    settings = read_settings(os.environ)
    session = boto3.Session(region_name=settings.region)
    clients: dict[str, Any] = {
        name: session.client(name, config=_CONFIG) for name in ("acm-pca", "autoscaling", "ec2", "kms", "s3", "sts")
    }
    endpoint: str = clients["sts"].meta.endpoint_url
    ca_bundle = os.environ.get("AWS_CA_BUNDLE")
    return Enrolment(
        settings=settings,
        call_sts=lambda request: call_sts(endpoint, request, ca_bundle=ca_bundle),
        autoscaling=clients["autoscaling"],
        ec2=clients["ec2"],
        s3=clients["s3"],
        authority=_issuer(settings, clients),
        clock=lambda: datetime.now(UTC),
        log=_log,
    )


def _issuer(settings: Settings, clients: dict[str, Any]) -> Issuer:
    if settings.private_ca is not None:
        return PrivateAuthority(pca=clients["acm-pca"], arn=settings.private_ca)

    def own(key: str | None, generation: int) -> Authority:
        assert key is not None  # the settings have one where there is no private CA
        return Authority(
            kms=clients["kms"],
            s3=clients["s3"],
            key_id=key,
            bucket=settings.jobs_bucket,
            cluster=settings.cluster,
            log=_log,
            generation=generation,
        )

    current = own(settings.ca_key, settings.ca_generation)
    if settings.previous_ca_key is None:
        return current
    return Rotation(settings.cluster, current, own(settings.previous_ca_key, settings.ca_generation - 1))


def _log(line: dict[str, Any]) -> None:
    print(json.dumps(line, sort_keys=True), flush=True)
