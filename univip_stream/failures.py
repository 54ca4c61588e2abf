"""Images that cannot be used: recorded with their reasons, and an error with a list if there are more than allowed."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from univip_stream.errors import InputError, UsageError

MAX_FAILURES = "1%"
"""Default of `--max-failures`: a share of the images."""
_LISTED = 20
"""Number of images that an error names; a result names all."""


class Failure(NamedTuple):
    """An image that cannot be used."""

    source: str
    """Name in the source."""
    status: str
    """`unreadable`, `too_small` or `too_large`, as in the shard format."""
    reason: str
    """Reason in words."""


def allowed_failures(text: str, images: int) -> float:
    """Return the number of images that may fail: a share of `images` such as `1%`, or a plain number.

    Raises:
        UsageError: it is neither.

    """
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        value = float(number)
    except ValueError:
        value = -1
    if not value >= 0 or (percent and value > 100):
        raise UsageError(f"--max-failures is {text!r}; expected a share such as 1% or a number of images such as 25")
    return value / 100 * images if percent else value


def too_many(failed: Sequence[tuple[str, str, str]], *, seen: int, images: int, allowed: str, advice: str) -> InputError:
    """Return the error that stops a job: the first failures, and what to do.

    Args:
        failed: (source, status, reason) of the images that cannot be used.
        seen: number of images processed so far.
        images: number of all images.
        allowed: `--max-failures`, as the user wrote it.
        advice: sentences about what is kept and what to do.

    """
    lines = "\n".join(listed(failed, _LISTED))
    return InputError(
        f"{len(failed)} of {seen} images could not be used; --max-failures allows {allowed} of {images}:\n{lines}\n{advice}"
    )


def stop_if_too_many(
    failed: Sequence[Failure], *, seen: int, images: int, allowed: str, advice: str = "", where: str = ""
) -> None:
    """Raise `too_many` if there are more failures than allowed.

    Args:
        failed: failures so far.
        seen: number of images processed so far.
        images: number of all images.
        allowed: `--max-failures`, as the user wrote it.
        advice: sentence about what is kept; what to do is appended.
        where: name of the source.

    Raises:
        InputError: there are more than allowed.

    """
    if len(failed) > allowed_failures(allowed, images):
        of = f" of {where}" if where else ""
        what = f"{advice} Mend or remove the files{of} and run again, or accept them with a larger --max-failures."
        raise too_many(failed, seen=seen, images=images, allowed=allowed, advice=what.strip())


def listed(failed: Sequence[tuple[str, str, str]], most: int) -> list[str]:
    """Return one line per image for the first `most`, and one that counts the others."""
    lines = [f"  {source}: {status}: {reason}" for source, status, reason in failed[:most]]
    return lines + ([f"  and {len(failed) - most} more"] if len(failed) > most else [])


def as_json(failed: Iterable[Failure]) -> list[dict[str, Any]]:
    """Return failures in the form of a result's JSON."""
    return [failure._asdict() for failure in failed]
