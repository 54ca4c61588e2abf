"""Ray as this project meets it: a cluster of somebody's, one that this process is part of already, or one of its own."""

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
"""Seconds that a cluster's address has for an answer."""
_LOOK = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextlib.contextmanager
def attached(ray: Any, address: str | None, *, otherwise: str, **local: Any) -> Iterator[None]:
    """Within: this process talks to a Ray. What was started here ends with it; a Ray that was there before stays.

    Args:
        ray: the module; whoever calls decides when it is imported.
        address: of a running cluster; None starts a local one, unless this process has called `ray.init` before.
        otherwise: what to do without Ray, for the messages.
        local: what `ray.init` gets for a local one.

    Raises:
        InputError: no cluster answers, it is of another version, or none can be started here.

    """
    if ray.is_initialized():  # `mine()` called by a program that uses Ray itself: its cluster, which is not ours to end
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's coming default; without it, it warns about accelerators that nobody here asks it for.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _connect(ray, address) if address else _begin(ray, otherwise, local)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which exits without a word of ours
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    _refuse_silence(address)
    try:
        ray.init(address=address, **_LOOK)
    except Exception as error:  # ConnectionError, Ray's own, ValueError, and RuntimeError for another version
        raise InputError(f"--address {address}: {_why_not(error)}") from error


def _why_not(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "ersion mismatch" in text:
        # Of several lines, which say what either side has.
        return f"{' '.join(text.split())}; install the cluster's versions here, in a fresh environment"
    return (
        f"{text.splitlines()[0]}; is a cluster running (`ray start --head`)? If it asks for a token: copy "
        "~/.ray/auth_token from its head and set RAY_AUTH_MODE=token"
    )


def _begin(ray: Any, otherwise: str, settings: dict[str, Any]) -> None:
    _keep_token_without_home()
    try:
        ray.init(address="local", include_dashboard=False, **_LOOK, **settings)
    except Exception as error:  # whatever one of its processes died of, or that took too long
        if "AF_UNIX path" in str(error):
            reason = too_long_for_sockets()
        else:
            reason = (
                in_words(error) if isinstance(error, OSError) else (str(error).strip() or type(error).__name__).split("\n")[0]
            )
        raise InputError(f"a local Ray cannot start here: {reason}. `univip-stream doctor` tries it; {otherwise}") from error


def _keep_token_without_home() -> None:
    """Give a local Ray its token by the environment where there is no home directory for ~/.ray/auth_token.

    So it is in containers that run as a user without one (`docker run --user`). Its processes inherit the variable.
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


def _refuse_silence(address: str) -> None:
    """Ray itself waits for minutes where nobody answers."""
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
    """Where Ray remembers this machine's cluster, also one that is gone."""
    try:
        return Path(tempfile.gettempdir(), "ray", "ray_current_cluster").read_text().strip()
    except (OSError, UnicodeError):
        return None
