"""Client certificates: TLS has verified that one of the configured CAs signed it, and that the caller has its key."""

from __future__ import annotations

import time

from cryptography import x509
from cryptography.x509.oid import NameOID

from scistreamd import validity
from scistreamd.errors import Code, ScistreamError
from scistreamd.identity import Challenge, Credentials, Identity


class ClientCertificates:
    """Names callers by the subject and the alternative names of their certificate."""

    @property
    def challenge(self) -> Challenge:
        """A client certificate."""
        return Challenge("mtls")

    async def identify(self, credentials: Credentials) -> Identity | None:
        """Whose certificate this is: named by its common name, else by its first alternative name."""
        if not credentials.certificate:
            return None
        certificate = x509.load_der_x509_certificate(credentials.certificate)
        # TLS has looked at this once; a connection may outlive its certificate.
        if validity.ends(certificate).timestamp() < time.time():
            raise ScistreamError(Code.UNAUTHENTICATED, "the client certificate has expired", "renew it")
        subject = certificate.subject.rfc4514_string()
        common = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        names = [name for name in (*common, *_alternatives(certificate), subject) if name.isprintable() and name]
        if not names:
            raise ScistreamError(
                Code.UNAUTHENTICATED, "the client certificate names nobody", "it needs a subject or alternative names"
            )
        return Identity("mtls", subject or names[0], names[0], frozenset(names[1:]))


def _alternatives(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    kinds = (x509.RFC822Name, x509.DNSName, x509.UniformResourceIdentifier)
    names = [str(name) for kind in kinds for name in found.get_values_for_type(kind)]
    return names + [str(address) for address in found.get_values_for_type(x509.IPAddress)]
