"""From when and until when a certificate counts, on every version of `cryptography`; and when an end is near."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

# A certificate that ends sooner is told of, on both sides.
SOON_DAYS = 30


def begins(certificate: x509.Certificate) -> datetime.datetime:
    """Its notBefore (RFC 5280, section 4.1.2.5), in UTC."""
    return _utc(certificate, "not_valid_before")


def ends(certificate: x509.Certificate) -> datetime.datetime:
    """Its notAfter, in UTC."""
    return _utc(certificate, "not_valid_after")


def _utc(certificate: x509.Certificate, moment: str) -> datetime.datetime:
    # cryptography 42 deprecated the naive attributes; Debian 12 has 38, which knows no other.
    found: datetime.datetime = getattr(certificate, f"{moment}_utc", None) or getattr(certificate, moment)
    return found.replace(tzinfo=datetime.timezone.utc)
