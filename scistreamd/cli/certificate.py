"""The control port's certificate: made with the right names, and read back for people.

RFC 6125 and RFC 2818 say what clients do with the names.
"""

from __future__ import annotations

import datetime
import json
import shlex
from argparse import Namespace
from pathlib import Path

from cryptography import x509

from scistreamd import addresses, files, selfsigned, validity
from scistreamd.cli import output
from scistreamd.cli.ctl import configuration
from scistreamd.errors import Code, ScistreamError, invalid

# Where scistreamd.service keeps the one that it makes where none is configured.
_MADE = Path("/var/lib/scistreamd/control/server.crt")


def create(options: Namespace) -> int:
    """``s2ctl cert create``: write key and certificate, say what they are and what comes next."""
    certificate, key = Path(options.out), Path(options.key)
    if certificate == key:
        raise invalid("key", "certificate and key cannot be one file", "--out and --key name two")
    if not options.force:
        _refuse_existing(key, certificate)
    names, ips = tuple(options.dns), tuple(options.ip)
    if not names and not ips:
        names, ips = addresses.own()
    made = selfsigned.make(names, ips, options.days)
    made.write(certificate, key, replace=options.force)
    if not options.quiet:
        _report(certificate, key, made.certificate)
    return 0


def show(options: Namespace) -> int:
    """``s2ctl cert show``: what a certificate file says."""
    path = Path(options.file) if options.file else _of_gateway()
    if not options.file and options.json == "off":
        output.note("s2ctl", f"this is {path}")
    found = [_facts(each) for each in _read(path)]
    if options.json != "off":
        print(json.dumps(found, indent=2 if options.json == "pretty" else None))
        return 0
    for facts in found:
        print("\n".join(f"{name:>12}: {_text(value)}" for name, value in facts.items()))
    return 0


def _of_gateway() -> Path:
    """The certificate of this host's control port: the configured one, else that which scistreamd made."""
    configured = configuration.value("control", "certificate")
    return Path(configured) if configured else _MADE


def _refuse_existing(*paths: Path) -> None:
    there = [str(path) for path in paths if files.there(path, links=True)]
    if there:
        are = "are" if there[1:] else "is"
        message = f"{' and '.join(there)} {are} there already; nothing was written"
        raise ScistreamError(Code.ALREADY_EXISTS, message, "--force replaces key and certificate")


def _report(certificate: Path, key: Path, made: x509.Certificate) -> None:
    print(f"{key}: private key, readable by its owner alone")
    print(f"{certificate}: certificate for {_text(_names(made))}")
    print(f"SHA-256 fingerprint: {selfsigned.fingerprint(made)}")
    files_of = {"crt": shlex.quote(str(certificate)), "key": shlex.quote(str(key))}
    print("next: s2cs --server-crt {crt} --server-key {key}".format_map(files_of))
    print("then give {crt}, never the key, to users: s2uc COMMAND --server-cert {crt}".format_map(files_of))


def _read(path: Path) -> list[x509.Certificate]:
    try:
        blocks = path.read_bytes().split(b"-----BEGIN CERTIFICATE-----")[1:]
    except FileNotFoundError:
        raise ScistreamError(Code.NOT_FOUND, f"{path} is not there", "s2ctl cert create makes one") from None
    except OSError as error:
        raise ScistreamError(
            Code.FAILED_PRECONDITION, f"cannot read {path}: {error.strerror}", "may you read it?"
        ) from None
    if not blocks:
        raise invalid("FILE", f"{path} holds no certificate in PEM form", "it begins with -----BEGIN CERTIFICATE-----")
    try:
        return [x509.load_pem_x509_certificate(b"-----BEGIN CERTIFICATE-----" + block) for block in blocks]
    except ValueError:
        raise invalid("FILE", f"{path} holds a damaged certificate", "copy it from the gateway again") from None


def _facts(certificate: x509.Certificate) -> dict[str, str | list[str]]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": _names(certificate),
        "not_before": _moment(validity.begins(certificate)),
        "not_after": _moment(validity.ends(certificate)),
        "sha256": selfsigned.fingerprint(certificate),
    }


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    ips = [f"IP:{ip}" for ip in alternatives.get_values_for_type(x509.IPAddress)]
    return [f"DNS:{name}" for name in alternatives.get_values_for_type(x509.DNSName)] + ips


def _moment(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "none"
