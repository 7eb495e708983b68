"""The control port's certificate: made with the right names, and read back for people.

RFC 5280 for the extensions, RFC 6125 and RFC 2818 for what clients do with the names.
"""

from __future__ import annotations

import datetime
import json
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scistreamd.cli import addresses, files
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.model import IPAddress

# Clocks of two facilities differ; a certificate should be valid at once on both.
_BACKDATED = datetime.timedelta(hours=1)
_MAX_COMMON_NAME = 64


def create(options: Namespace) -> int:
    """``s2ctl cert create``: write key and certificate, say what they are and what comes next."""
    certificate, key = Path(options.out), Path(options.key)
    if certificate == key:
        raise invalid("key", "certificate and key cannot be one file")
    if not options.force:
        _refuse_existing(key, certificate)
    names, ips = tuple(options.dns), tuple(options.ip)
    if not names and not ips:
        names, ips = addresses.own()
    secret = ec.generate_private_key(ec.SECP256R1())
    made = _self_signed(secret, names, ips, options.days)
    files.write(key, _pem(secret), 0o600, replace=options.force)
    try:
        files.write(certificate, made.public_bytes(serialization.Encoding.PEM), 0o644, replace=options.force)
    except ScistreamError:
        # A key without its certificate is of no use to anyone.
        key.unlink(missing_ok=True)
        raise
    _report(certificate, key, made)
    return 0


def show(options: Namespace) -> int:
    """``s2ctl cert show``: what a certificate file says."""
    found = [_facts(each) for each in _read(Path(options.file))]
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for facts in found:
        print("\n".join(f"{name:>12}: {_text(value)}" for name, value in facts.items()))
    return 0


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER bytes, in the form that ``openssl x509 -fingerprint`` prints."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _self_signed(
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


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _refuse_existing(*paths: Path) -> None:
    there = [str(path) for path in paths if path.exists() or path.is_symlink()]
    if there:
        are = "are" if there[1:] else "is"
        message = f"{' and '.join(there)} {are} there already; nothing was written"
        raise ScistreamError(Code.ALREADY_EXISTS, message, "--force replaces key and certificate")


def _report(certificate: Path, key: Path, made: x509.Certificate) -> None:
    print(f"{key}: private key, readable by its owner alone")
    print(f"{certificate}: certificate for {_text(_names(made))}")
    print(f"SHA-256 fingerprint: {fingerprint(made)}")
    files_of = {"crt": shlex.quote(str(certificate)), "key": shlex.quote(str(key))}
    print("next: s2cs --server-crt {crt} --server-key {key}".format_map(files_of))
    print("then give {crt}, never the key, to users: s2uc COMMAND --server-cert {crt}".format_map(files_of))


def _read(path: Path) -> list[x509.Certificate]:
    try:
        blocks = path.read_bytes().split(b"-----BEGIN CERTIFICATE-----")[1:]
    except FileNotFoundError:
        raise ScistreamError(Code.NOT_FOUND, f"{path} is not there", "s2ctl cert create makes one") from None
    except OSError as error:
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot read {path}: {error.strerror}") from None
    if not blocks:
        raise invalid("FILE", f"{path} holds no certificate in PEM form")
    try:
        return [x509.load_pem_x509_certificate(b"-----BEGIN CERTIFICATE-----" + block) for block in blocks]
    except ValueError:
        raise invalid("FILE", f"{path} holds a damaged certificate") from None


def _facts(certificate: x509.Certificate) -> dict[str, str | list[str]]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": _names(certificate),
        "not_before": _utc(certificate, "not_valid_before"),
        "not_after": _utc(certificate, "not_valid_after"),
        "sha256": fingerprint(certificate),
    }


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    ips = [f"IP:{ip}" for ip in alternatives.get_values_for_type(x509.IPAddress)]
    return [f"DNS:{name}" for name in alternatives.get_values_for_type(x509.DNSName)] + ips


def _utc(certificate: x509.Certificate, moment: str) -> str:
    # cryptography 42 deprecated the naive attributes; Debian 12 has 38, which knows no other.
    value: Any = getattr(certificate, f"{moment}_utc", None) or getattr(certificate, moment)
    return f"{value:%Y-%m-%dT%H:%M:%SZ}"


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "none"
