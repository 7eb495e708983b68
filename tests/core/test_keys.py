"""A tunnel's keys: the format between facilities is frozen by vectors, the rest by properties."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from scistreamd.keys import INFO, ORDER, TunnelKeys, ca_certificate, ca_key
from scistreamd.model import Role, Security, Uid
from scistreamd.plans import CA_FILE, LEAF_FILE, PSK_FILE

# Frozen: docs/data-servers.md prints the same. UID, private key d, compressed public key (SEC 1).
VECTORS = [
    (
        "4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3",
        "b58eb740c160243565419bbb15d5952982a727c40f4ab6b23c3990afcbf5d2a9",
        "03035014a0b0e350ebd29d628f0d12e7a33dba3d2ec0dd759f4e657d5bdee5165f",
    ),
    (
        "00000000-0000-0000-0000-000000000000",
        "5aaf4a023d2c3731b223550d755d22c29455d04fca9404cc0b8c1d2ec3d96a43",
        "03d6b3da2d089b8e3b98be2ea3a93a44bff7b571035757fdd7ca477a99b63ab399",
    ),
    (
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "29cd0ccd4a232c9ce012c28d703055a0fe33aeb0769938cfa16ee0cb9a52ef3c",
        "0285c7245b67508f9ade6111ca27e74f059004294343f72a7d465c9ab2f36a6b2f",
    ),
    (
        "123e4567-e89b-42d3-a456-426614174000",
        "ae033a7c128d9f0481ad2ee579b9fd234ab5232e9f4b19924e6f88fcdd718c9c",
        "034475d285b31fe2b3fca759428d966a7312577e9a8377951b41c2536e1dd6c38f",
    ),
]
UID = Uid.parse(VECTORS[0][0])


@pytest.mark.parametrize(("uid", "private", "public"), VECTORS)
def test_the_ca_key_is_the_frozen_one(uid: str, private: str, public: str) -> None:
    key = ca_key(Uid.parse(uid))
    assert f"{key.private_numbers().private_value:064x}" == private
    assert key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex() == public


@pytest.mark.parametrize(("uid", "private"), [(uid, private) for uid, private, _ in VECTORS])
def test_the_vectors_follow_from_rfc_5869_alone(uid: str, private: str) -> None:
    extracted = hmac.digest(bytes(32), Uid.parse(uid).bytes, hashlib.sha256)
    first = hmac.digest(extracted, INFO + b"\x01", hashlib.sha256)
    second = hmac.digest(extracted, first + INFO + b"\x02", hashlib.sha256)
    material = int.from_bytes((first + second)[:48], "big")
    assert f"{material % (ORDER - 1) + 1:064x}" == private


def test_both_gateways_make_interchangeable_ca_certificates() -> None:
    one, other = (ca_certificate(ca_key(UID)) for _ in Role)
    assert (one.subject, one.serial_number, one.issuer) == (other.subject, other.serial_number, other.issuer)
    identifiers = [cert.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_KEY_IDENTIFIER) for cert in (one, other)]
    assert identifiers[0] == identifiers[1]
    assert one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    ("role", "expected", "usage"),
    [
        (Role.PROD, ["prod.scistream.invalid", "test.scistream.invalid"], ExtendedKeyUsageOID.SERVER_AUTH),
        (Role.CONS, ["cons.scistream.invalid"], ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_the_leaf_names_its_role_and_nothing_of_the_uid(
    role: Role, expected: list[str], usage: x509.ObjectIdentifier
) -> None:
    files = TunnelKeys().files(UID, role, Security.TLS)
    leaf = x509.load_pem_x509_certificate(files[LEAF_FILE])
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == expected
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    shown = leaf.public_bytes(Encoding.DER) + x509.load_pem_x509_certificate(files[CA_FILE]).public_bytes(Encoding.DER)
    assert UID.bytes not in shown
    assert UID.id.encode() not in shown


def test_an_inbound_leaf_has_the_addresses_that_peers_dial() -> None:
    addresses = [ipaddress.ip_address(text) for text in ("2001:db8::7", "192.0.2.7")]
    for role, expected in ((Role.PROD, addresses), (Role.CONS, [])):
        files = TunnelKeys().files(UID, role, Security.TLS, addresses)
        leaf = x509.load_pem_x509_certificate(files[LEAF_FILE])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(names.get_values_for_type(x509.IPAddress)) == set(expected)
        assert f"{role.value.lower()}.scistream.invalid" in names.get_values_for_type(x509.DNSName)


def test_each_leaf_has_a_key_of_its_own() -> None:
    leaves = [
        x509.load_pem_x509_certificate(TunnelKeys().files(UID, role, Security.TLS)[LEAF_FILE])
        for role in (Role.PROD, Role.PROD, Role.CONS)
    ]
    assert all(_p256(leaf) for leaf in leaves)
    keys = {leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for leaf in leaves}
    assert len(keys) == 3


def _p256(leaf: x509.Certificate) -> bool:
    key = leaf.public_key()
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"


def test_a_tunnel_depends_on_no_clock() -> None:
    leaf = x509.load_pem_x509_certificate(TunnelKeys().files(UID, Role.PROD, Security.TLS)[LEAF_FILE])
    der = leaf.public_bytes(Encoding.DER)
    assert b"000101000000Z" in der  # UTCTime, 2000
    assert b"99991231235959Z" in der  # GeneralizedTime, RFC 5280 4.1.2.5


def test_psk_null_keys_are_the_sixteen_bytes_of_the_uid() -> None:
    files = TunnelKeys().files(UID, Role.PROD, Security.PSK_NULL)
    assert files == {PSK_FILE: b"client1:4f8583bca4d311ee9fd6034d1fcbd7c3\n"}
    assert TunnelKeys().files(UID, Role.CONS, Security.PSK_NULL) == files


def test_a_plain_tunnel_has_no_keys() -> None:
    assert TunnelKeys().files(UID, Role.PROD, Security.NONE) == {}


def context(directory: Path, files: Mapping[str, bytes], *, server: bool) -> ssl.SSLContext:
    """A TLS context that judges the peer by these files."""
    for name, content in files.items():
        (directory / name).write_bytes(content)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(directory / LEAF_FILE)
    made.load_verify_locations(directory / CA_FILE)
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Run a handshake in memory; raises what either side finds."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="prod.scistream.invalid"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize(
    ("uid", "roles", "passes"),
    [
        (UID, (Role.PROD, Role.CONS), True),
        (Uid.parse(VECTORS[1][0]), (Role.PROD, Role.CONS), False),
        (UID, (Role.PROD, Role.PROD), False),  # a reflected certificate
        (UID, (Role.CONS, Role.CONS), False),
    ],
)
def test_only_the_two_roles_of_one_tunnel_accept_each_other(
    tmp_path: Path, uid: Uid, roles: tuple[Role, Role], passes: bool
) -> None:
    for name in ("server", "client"):
        (tmp_path / name).mkdir()
    server = context(tmp_path / "server", TunnelKeys().files(UID, roles[0], Security.TLS), server=True)
    client = context(tmp_path / "client", TunnelKeys().files(uid, roles[1], Security.TLS), server=False)
    if passes:
        handshake(server, client)
        return
    with pytest.raises(ssl.SSLError):
        handshake(server, client)
