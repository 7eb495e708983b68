"""A tunnel's keys, derived from its UID: no certificate has to be exchanged.

Both gateways know the UID, so both derive the same CA key, and each issues
itself a leaf certificate with its role in it. The derivation is a format
between facilities; docs/data-servers.md specifies it with test vectors.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scistreamd.dataserver.answer import ANSWER_NAME
from scistreamd.dataserver.common import CERTIFICATE_NAME
from scistreamd.model import IPAddress, Role, Security, Uid
from scistreamd.plans import CA_FILE, LEAF_FILE, PSK_FILE

INFO = b"scistream tls v1 ca"
# n of NIST P-256 (FIPS 186-5, SP 800-186): the number of private keys, plus one.
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PSK_IDENTITY = "client1"

CA_NAME = "scistream tunnel CA"
CA_SERIAL = 1
# A tunnel is ended, not expired: gateways need no common clock.
NOT_BEFORE = datetime.datetime(2000, 1, 1)
NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59)

_USAGE = {Role.PROD: ExtendedKeyUsageOID.SERVER_AUTH, Role.CONS: ExtendedKeyUsageOID.CLIENT_AUTH}


def ca_key(uid: Uid) -> ec.EllipticCurvePrivateKey:
    """The tunnel's CA key on P-256, the same on both gateways.

    d = HKDF-SHA256(UID, no salt, INFO, 48 bytes) mod (n - 1) + 1: RFC 5869, and
    FIPS 186-5 A.2.1 (the 16 surplus bytes make the bias negligible).
    """
    material = HKDF(algorithm=hashes.SHA256(), length=48, salt=None, info=INFO).derive(uid.bytes)
    return ec.derive_private_key(int.from_bytes(material, "big") % (ORDER - 1) + 1, ec.SECP256R1())


def ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """The self-signed CA certificate; those of the two gateways differ in the signature alone."""
    name = _name(CA_NAME)
    return (
        _builder(name, name, key.public_key(), key)
        .serial_number(CA_SERIAL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def leaf_certificate(
    role: Role,
    key: ec.EllipticCurvePrivateKey,
    issuer: ec.EllipticCurvePrivateKey,
    addresses: Collection[IPAddress] = (),
) -> x509.Certificate:
    """This gateway's certificate: the role is in the name (SAN) and in the extended key usage.

    That of an inbound one has the name by which its data server answers tests as well, and the ``addresses`` that
    peers dial. Gateways go by the name; who judges by the rules of the web (RFC 9110 4.3.5) looks for the address.
    """
    names: list[x509.GeneralName] = [x509.DNSName(CERTIFICATE_NAME[role])]
    if role is Role.PROD:
        names += [x509.DNSName(ANSWER_NAME), *(x509.IPAddress(each) for each in sorted(addresses, key=str))]
    return (
        _builder(_name(CERTIFICATE_NAME[role]), _name(CA_NAME), key.public_key(), issuer)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[role]]), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer, hashes.SHA256())
    )


class TunnelKeys:
    """`interfaces.KeyMaker`: opens nothing, keeps nothing."""

    def files(
        self, uid: Uid, role: Role, security: Security, addresses: Collection[IPAddress] = ()
    ) -> Mapping[str, bytes]:
        """File name to content for `Places.secrets`; empty under ``none``.

        ``tls``: CA_FILE (certificate) and LEAF_FILE (certificate, then its fresh
        random key, unencrypted PKCS #8). ``psk-null``: PSK_FILE as stunnel(8)
        reads it, the key being the 16 bytes of the UID in hex.
        """
        if security is Security.TLS:
            return _tls_files(uid, role, addresses)
        if security is Security.PSK_NULL:
            return {PSK_FILE: f"{PSK_IDENTITY}:{uid.bytes.hex()}\n".encode("ascii")}
        return {}


def _tls_files(uid: Uid, role: Role, addresses: Collection[IPAddress]) -> dict[str, bytes]:
    issuer = ca_key(uid)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    leaf = leaf_certificate(role, key, issuer, addresses).public_bytes(pem)
    return {CA_FILE: ca_certificate(issuer).public_bytes(pem), LEAF_FILE: leaf + private}


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
