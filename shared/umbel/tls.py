"""TLS for Umbel's clients: version 1.3, trusting only the server's own certificate authority."""

import ssl

from umbel.errors import UmbelError


def client_context(ca: str) -> ssl.SSLContext:
    """A context that trusts a server whose certificate is for its host name and issued by the authority `ca` (PEM).

    Raises UmbelError when `ca` is not a certificate in PEM.
    """
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
    """A context that trusts any server. Use it only to fetch a server's Trust, which is then checked by a fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
