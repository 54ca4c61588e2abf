"""Explain errors of web servers and object stores in plain words, and whether another try can help."""

import os
import re
import socket
import ssl
from typing import Any

from univip_stream.storage.retry import failure

_AWS = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?")
_CURL = re.compile(r"curlCode: (\d+), (.*)", re.DOTALL)
_KEYS = (
    "keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_NO_SIGN_REQUEST=YES reads public buckets without keys"
)
_CERTIFICATE = "SSL_CERT_FILE may name a file of further authorities"
_REFUSALS = (
    "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION_TOKEN", "INVALID_SIGNATURE", "REQUEST_EXPIRED", "REQUEST_TIME_TOO_SKEWED", "ACCOUNT_PROBLEM",
)  # fmt: skip
_WRONG_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint")
_PERMANENT = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, TypeError, AttributeError, MemoryError
)  # fmt: skip
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 531)})
"""HTTP statuses that may change with another try; 520 to 530 come from a large proxy whose servers do not answer."""


class WebStatusError(Exception):
    """An answer of a web server with an error status."""

    def __init__(self, status: int, reason: str, retry_after: str | None, url: Any):
        super().__init__(f"HTTP {status} {reason}".rstrip())
        self.status, self.retry_after, self.url = status, retry_after, url


class OptedOutError(OSError):
    """An image whose server asks that it is not used."""


class TooLongError(OSError):
    """A file that is larger than allowed."""

    def __init__(self, size: int):
        super().__init__(f"at least {size} bytes")
        self.size = size


def explained(location: str, error: Exception, message: str | None = None) -> OSError:
    """Return the error of a request to a web server as an `OSError`, of the same class as for files.

    Args:
        location: location that was requested.
        error: error that the client raised; one that was explained before is returned unchanged.
        message: message to use instead.

    """
    import aiohttp

    if isinstance(error, OSError) and "may_pass" in error.__dict__:
        return error
    kind, text, passing = OSError, f"{type(error).__name__}: {error}", False
    if message is not None:
        kind, text = TimeoutError, message
    elif isinstance(error, WebStatusError):
        kind = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}.get(
            error.status, OSError
        )
        text, passing = str(error), error.status in _PASSING_STATUSES
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        cause = error.os_error
        passing = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        kind, text = ConnectionError, f"the name of its server, {error.host}, is not found ({cause.strerror or cause})"
    elif isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        cause = getattr(error, "certificate_error", error)
        kind, text = ConnectionError, f"its server's certificate is not trusted ({_short(cause)}); {_CERTIFICATE}"
    elif isinstance(error, aiohttp.ClientSSLError):
        kind, text = ConnectionError, f"no encrypted connection to {error.host}:{error.port} ({_short(error.os_error)})"
    elif isinstance(error, aiohttp.ClientProxyConnectionError):
        kind, passing = ConnectionError, True
        reason = error.os_error.strerror or error.os_error
        text = f"no connection to the proxy {error.host}:{error.port} ({reason}), which http_proxy or https_proxy names"
    elif isinstance(error, aiohttp.ClientHttpProxyError):
        text = f"its proxy refuses it (HTTP {error.status} {error.message}); no_proxy names servers to ask without it"
    elif isinstance(error, aiohttp.ClientConnectorError):
        kind, passing = ConnectionError, True
        reason = error.os_error.strerror or error.os_error
        text = f"no connection to {error.host}:{error.port} ({reason}); check the address, and that its server runs"
    elif isinstance(error, TimeoutError):
        kind, text, passing = (
            TimeoutError,
            "the server is silent, or all but silent" + (f" ({error})" if str(error) else ""),
            True,
        )
    elif isinstance(error, aiohttp.InvalidURL | ValueError):
        text = f"no address that can be asked for ({error})"
    elif isinstance(error, aiohttp.ClientPayloadError):
        kind, text, passing = ConnectionError, f"the answer ends before its end ({_inner(error)})", True
    elif isinstance(error, aiohttp.ClientResponseError):
        text, passing = f"the server does not answer as web servers do ({error.message})", True
    elif isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        kind, text, passing = ConnectionError, f"the connection broke off ({error})", True
    # Parsers mark the position on extra lines; a reason is one line.
    return failure(kind, location, " ".join(text.split()), passing=passing)


def explained_store(location: str, error: Exception) -> Exception:
    """Return pyarrow's error of a request to an object store in the same way; other errors are returned unchanged."""
    text = str(error)
    found, status, curl = _AWS.search(text), None, _CURL.search(text)
    if found is None:
        if isinstance(error, _PERMANENT):
            return error
        if isinstance(error, ValueError):  # pyarrow's ArrowInvalid, for names that it cannot read
            return failure(OSError, location, text)
        return failure(OSError, location, f"{type(error).__name__}: {text}", passing=True)
    code, status = found[1], found[2]
    if code == "NO_SUCH_BUCKET":
        return no_such_bucket(location)
    if curl is not None:
        return _network(location, int(curl[1]), curl[2].strip())
    if status == "301" or any(word in text for word in _WRONG_REGION):
        message = (
            "the bucket lies in another region than asked for; set AWS_REGION to its region, or unset it to have it found"
        )
        return failure(OSError, location, f"{message} ({_tail(text)})")
    if code in _REFUSALS or status in ("401", "403"):
        return failure(PermissionError, location, f"the store refuses it ({code}: {_tail(text)}); {_KEYS}")
    if status is not None and int(status) not in _PASSING_STATUSES:
        return failure(OSError, location, f"HTTP {status} ({_tail(text)}); {_endpoint()}")
    return failure(OSError, location, f"{code}: {_tail(text)}", passing=True)


def no_such_bucket(location: str) -> OSError:
    """Return the error that a location's bucket does not exist."""
    bucket = location.partition("://")[2].partition("/")[0]
    return failure(OSError, location, f"there is no bucket {bucket!r}; {_endpoint()}")


def _endpoint() -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return (
        f"asked was {endpoint} (AWS_ENDPOINT_URL)" if endpoint else "Amazon was asked; AWS_ENDPOINT_URL is for other servers"
    )


def _network(location: str, code: int, text: str) -> OSError:
    details = text.rpartition("Details: ")[2]
    certificate = code in (35, 51, 58, 60, 77)  # https://curl.se/libcurl/c/libcurl-errors.html
    if certificate:
        message = (
            f"the store's certificate is not trusted, or it speaks no TLS ({details}); SSL_CERT_FILE or AWS_CA_BUNDLE may name a "
            "file of further authorities"
        )
    elif code == 6:
        message = f"the name of the store's server is not found ({details}); {_endpoint()}"
    else:
        message = f"no connection to the store ({details}); {_endpoint()}"
    return failure(ConnectionError, location, message, passing=not certificate)


def _tail(text: str) -> str:
    """Return the store's own message, without the operation and the number of the request."""
    answer = text.rpartition(" operation: ")[2].partition(" (Request ID:")[0].strip()
    return answer.removeprefix("Unable to parse ExceptionName: ") or "no reason given"


def _short(error: object) -> str:
    return re.sub(
        r"\s*\(_ssl\.c:\d+\)", "", str(getattr(error, "verify_message", "") or getattr(error, "strerror", "") or error)
    )


def _inner(error: Exception) -> str:
    text = str(error)
    found = re.search(r"message='([^']*)'|message=\"([^\"]*)\"", text)
    return (found[1] or found[2]).rstrip(".") if found else text
