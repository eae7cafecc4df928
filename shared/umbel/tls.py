"""TLS as Umbel's clients speak it: version 1.3, and nobody trusted but the server's own certificate authority."""

import ssl

from umbel.errors import UmbelError


def client_context(ca: str) -> ssl.SSLContext:
    """Trust servers with a certificate for their name that the authority `ca` (PEM) issued; raises UmbelError on no PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise UmbelError(
            f"expected a certificate authority's certificate in PEM, could not read one: {error}"
        ) from error
    return context


def blind_context() -> ssl.SSLContext:
    """Trust anybody: only to ask a server who it is, when its answer is checked against a fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
