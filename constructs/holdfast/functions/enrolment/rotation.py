"""A rotation of the CA: two generations trusted at once, and the moment from which the new one signs.

While both keys are configured, every answer has nodes trust both CAs. The old one goes on signing for one certificate's
life after the new one's certificate was made: by then every node that runs has renewed and trusts the new one, so none
meets a peer whose CA it doesn't know. Then the new one signs (docs/ca-rotation.md).
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from authority import Authority
from certificates import BACKDATE, Issued, Node, voucher
from cryptography import x509


@dataclass
class Rotation:
    """Signs with one of two generations of a cluster's CA and has nodes trust both."""

    cluster: str
    new: Authority
    old: Authority
    _voucher: x509.Certificate | None = None

    def issue(self, node: Node, lifetime: timedelta, now: datetime) -> Issued:
        """Return a node's certificate, with the other CA and the old one's word for the new one.

        Raises:
            Refused: a CA's certificate is not what it must be, or the old one's is missing.
        """
        old = self.old.certificate(now, may_make=False)  # first: nothing is made for a rotation that cannot be
        new = self.new.certificate(now)
        if self._voucher is None:
            self._voucher = voucher(cluster=self.cluster, new=new, old=old, now=now, sign=self.old.sign)
        known_since = new.not_valid_before_utc + BACKDATE
        if now < known_since + lifetime:
            issued, other = self.old.issue(node, lifetime, now), new
        else:
            issued, other = self.new.issue(node, lifetime, now), old
        return replace(issued, trusted=other, voucher=self._voucher)
