"""One enrolment from event to answer: what is checked, in order, and what is logged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError
from certificates import Issued, Node
from configuration import Settings
from cryptography.hazmat.primitives.serialization import Encoding
from fleet import private_address, require_member, role_of
from proof import Caller, StsRequest, parse_caller, rebuild
from records import claim_proof, require_not_denied
from refusal import Reason, Refused
from signing_request import SigningRequest, parse


class Issuer(Protocol):
    """What signs: a CA of the cluster's own, two of them during a rotation, or an AWS Private CA."""

    def issue(self, node: Node, lifetime: timedelta, now: datetime) -> Issued:
        """Return a certificate for the node."""


@dataclass(frozen=True)
class Enrolment:
    """The enrolment of one cluster's nodes, with its edges: STS, Auto Scaling, EC2, S3, the CA, a clock and a log."""

    settings: Settings
    call_sts: Callable[[StsRequest], tuple[int, bytes]]
    autoscaling: Any
    ec2: Any
    s3: Any
    authority: Issuer
    clock: Callable[[], datetime]
    log: Callable[[dict[str, Any]], None]

    def respond(self, event: object) -> dict[str, Any]:
        """Return `{"certificate", "ca"}` as PEM, or `{"refused": {"reason", "message"}}`; log which, once.

        During a rotation of the CA the answer also has `trusted`, the other CA, and `voucher`, the old one's word for
        the new one.

        The log line and the refusal hold no part of the proof. What is not foreseen raises.
        """
        try:
            return self._enrol(event)
        except Refused as refusal:
            refused = refusal
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            refused = Refused(Reason.UNAVAILABLE, f"AWS refused {error.operation_name} to the function: {code}")
        except BotoCoreError as error:
            refused = Refused(Reason.UNAVAILABLE, f"the function could not reach AWS: {type(error).__name__}")
        message = str(refused)
        self.log({"event": "enrolment_refused", "reason": refused.reason.value, "message": message})
        return {"refused": {"reason": refused.reason.value, "message": message}}

    def _enrol(self, event: object) -> dict[str, Any]:
        if not isinstance(event, Mapping) or set(event) != {"csr", "proof"}:
            raise Refused(Reason.BAD_REQUEST, 'event must be an object with exactly the keys "csr" and "proof"')
        settings = self.settings
        request = parse(event["csr"])
        caller = self._caller(event["proof"], request)
        role = role_of(caller, settings.roles)
        require_not_denied(self.s3, settings.jobs_bucket, caller.instance_id)
        require_member(self.autoscaling, caller.instance_id, settings.roles[role].group)
        address = private_address(self.ec2, caller.instance_id)
        # Last, so that what was refused is not remembered: a proof that gave nothing is not used up.
        claim_proof(self.s3, settings.jobs_bucket, event["proof"]["query"]["X-Amz-Signature"])
        node = Node(settings.cluster, role, caller.instance_id, address, request.public_key, request.pem)
        issued = self.authority.issue(node, settings.certificate_lifetime, self.clock())
        certificate = issued.certificate
        self.log(
            {
                "event": "enrolled",
                "role": role,
                "instance": caller.instance_id,
                "serial": f"{certificate.serial_number:x}",
                "not_after": certificate.not_valid_after_utc.isoformat(),
                "issuer": certificate.issuer.rfc4514_string(),
            }
        )
        parts = {
            "certificate": certificate,
            "ca": issued.ca,
            "trusted": issued.trusted,
            "voucher": issued.voucher,
        }
        return {name: part.public_bytes(Encoding.PEM).decode() for name, part in parts.items() if part is not None}

    def _caller(self, proof: object, request: SigningRequest) -> Caller:
        sts_request = rebuild(
            proof,
            csr_sha256=request.sha256,
            cluster=self.settings.cluster,
            region=self.settings.region,
            now=self.clock(),
        )
        return parse_caller(*self.call_sts(sts_request))
