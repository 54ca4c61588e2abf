"""Connect to Ray: to a running cluster, to one that this process is already part of, or to a local one started here."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from univip_stream.errors import InputError, in_words, too_long_for_sockets

ANSWER_WITHIN = 10.0
"""Seconds within which a cluster must answer."""
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextlib.contextmanager
def attached(ray: Any, address: str | None, *, otherwise: str, **local: Any) -> Iterator[None]:
    """While inside: this process is connected to Ray. A Ray that was started here ends with it; an existing one stays.

    Args:
        ray: the module; the caller decides when it is imported.
        address: address of a running cluster; None starts a local one, unless this process has called `ray.init` before.
        otherwise: advice for working without Ray, for the messages.
        local: arguments of `ray.init` for a local one.

    Raises:
        InputError: no cluster answers, it has another version, or none can be started here.

    """
    if ray.is_initialized():  # `mine()` was called by a program that uses Ray itself, so it is not ours to shut down
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's future default; without it, Ray warns about accelerators that are not requested here.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _connect(ray, address) if address else _start_local(ray, otherwise, local)
        except SystemExit as end:
            # SIGTERM came to the handler that Ray installs on its way: it exits with the signal's number, without our message.
            if end.code == signal.SIGTERM and callable(on_sigterm):
                on_sigterm(signal.SIGTERM, None)
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    _require_answer(address)
    try:
        ray.init(address=address, **_QUIET)
    except Exception as error:  # ConnectionError, Ray's own, ValueError, and RuntimeError for another version
        raise InputError(f"--address {address}: {_connection_failure(error)}") from error


def _connection_failure(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "ersion mismatch" in text:
        # The message has several lines, with the versions of both sides.
        return f"{' '.join(text.split())}; install the cluster's versions here, in a fresh environment"
    return (
        f"{text.splitlines()[0]}; is a cluster running (`ray start --head`)? If it asks for a token: copy "
        "~/.ray/auth_token from its head and set RAY_AUTH_MODE=token"
    )


def _start_local(ray: Any, otherwise: str, settings: dict[str, Any]) -> None:
    _keep_token_without_home()
    try:
        ray.init(address="local", include_dashboard=False, **_QUIET, **settings)
    except Exception as error:  # one of Ray's processes died, or took too long
        if "AF_UNIX path" in str(error):
            reason = too_long_for_sockets()
        else:
            reason = (
                in_words(error) if isinstance(error, OSError) else (str(error).strip() or type(error).__name__).split("\n")[0]
            )
        raise InputError(f"a local Ray cannot start here: {reason}. `univip-stream doctor` tries it; {otherwise}") from error


def _keep_token_without_home() -> None:
    """Pass a local Ray its token in the environment if there is no home directory for ~/.ray/auth_token.

    This happens in containers that run as a user without one (`docker run --user`). Ray's processes inherit the variable.
    """
    if any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor an entry in passwd
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _require_answer(address: str) -> None:
    """Raise InputError if nobody answers at the address, where Ray itself would wait for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _latest_cluster() or address
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN).close()
        except (OSError, OverflowError, UnicodeError) as error:  # the last two: no port, and no host's name
            raise InputError(
                f"--address {address}: nobody answers there ({error}); start a cluster with `ray start --head`, "
                "or leave --address out for a local one"
            ) from error


def _latest_cluster() -> str | None:
    """Return the address that Ray has recorded for this machine's cluster, which may have ended."""
    try:
        return Path(tempfile.gettempdir(), "ray", "ray_current_cluster").read_text().strip()
    except (OSError, UnicodeError):
        return None
