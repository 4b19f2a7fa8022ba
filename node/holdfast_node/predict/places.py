"""Where the agent puts what a predictor serves: written by the agent, read and never written by the service."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Files below `NodePaths.job`, whose setgid bit makes them readable to the trainer's user."""

    job: Path

    @property
    def model(self) -> Path:
        """The model's files, as they were signed."""
        return self.job / "served"

    @property
    def signature(self) -> Path:
        """The model's signature."""
        return self.job / "model.sig"

    @property
    def key(self) -> Path:
        """The public key (PEM) that models of this cluster are verified with, from KMS."""
        return self.job / "model-key.pem"

    @property
    def tls(self) -> Path:
        """The node's key and certificate."""
        return self.job / "tls"

    @property
    def denied(self) -> Path:
        """The ids of the instances that an operator has revoked, a JSON list."""
        return self.job / "denied.json"

    @property
    def client_ca(self) -> Path:
        """The authority (PEM) that clients' certificates come from, where it is not the cluster's (`tls/ca.pem`)."""
        return self.job / "client-ca.pem"
