"""Self-signed certificates for the control port, with the names that clients dial.

RFC 5280 for the extensions.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scistreamd import files
from scistreamd.errors import ScistreamError
from scistreamd.model import IPAddress

# Clocks of two facilities differ; a certificate should be valid at once on both.
_BACKDATED = datetime.timedelta(hours=1)
_MAX_COMMON_NAME = 64


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, certificate: Path, key: Path, *, replace: bool) -> None:
        """Write both as PEM, the key for its owner alone; both or none. Raises as `files.write` does."""
        secret = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.write(key, secret, 0o600, replace=replace)
        try:
            files.write(certificate, self.certificate.public_bytes(serialization.Encoding.PEM), 0o644, replace=replace)
        except ScistreamError:
            # A key without its certificate is of no use to anyone.
            key.unlink(missing_ok=True)
            raise


def make(names: tuple[str, ...], ips: tuple[IPAddress, ...], days: int) -> Pair:
    """A new key and a certificate for the names and addresses, valid from now on for so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Pair(_certificate(key, names, ips, days), key)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER bytes, in the form that ``openssl x509 -fingerprint`` prints."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _certificate(
    key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], ips: tuple[IPAddress, ...], days: int
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    common = [name for name in (*names, *map(str, ips)) if len(name) <= _MAX_COMMON_NAME]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[0])] if common else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    for extension, critical in _extensions(key, names, ips, has_subject=bool(common)):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())


def _extensions(
    key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], ips: tuple[IPAddress, ...], *, has_subject: bool
) -> list[tuple[x509.ExtensionType, bool]]:
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ip) for ip in ips]
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return [
        # RFC 5280, 4.2.1.6: critical where the subject is empty.
        (x509.SubjectAlternativeName(alternatives), not has_subject),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
