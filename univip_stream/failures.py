"""Images that cannot be used: each with its reason, counted against what is put up with, and listed when there are more."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from univip_stream.errors import InputError, UsageError

MAX_FAILURES = "1%"
"""Of the images, as `--max-failures` says it."""
_LISTED = 20
"""Images that an error names; a result names all."""


class Failure(NamedTuple):
    """An image that cannot be used."""

    source: str
    """Its name in the source."""
    status: str
    """`unreadable`, `too_small` or `too_large`, as the shard format has them."""
    reason: str
    """Why, in words."""


def allowed_failures(text: str, images: int) -> float:
    """How many images may fail: `1%` of `images`, or a plain number.

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
    """The error that stops a job: the first failures, and what to do.

    Args:
        failed: (source, status, reason) of the images that cannot be used.
        seen: images looked at so far.
        images: all of them.
        allowed: `--max-failures`, in the user's words.
        advice: what is kept and what to do.

    """
    lines = "\n".join(listed(failed, _LISTED))
    return InputError(
        f"{len(failed)} of {seen} images could not be used; --max-failures allows {allowed} of {images}:\n{lines}\n{advice}"
    )


def stop_if_too_many(
    failed: Sequence[Failure], *, seen: int, images: int, allowed: str, advice: str = "", where: str = ""
) -> None:
    """Raise `too_many` where there are more failures than are put up with.

    Args:
        failed: so far.
        seen: images looked at so far.
        images: all of them.
        allowed: `--max-failures`, in the user's words.
        advice: what is kept; what to do follows.
        where: the source, for people.

    Raises:
        InputError: there are.

    """
    if len(failed) > allowed_failures(allowed, images):
        of = f" of {where}" if where else ""
        what = f"{advice} Mend or remove the files{of} and run again, or accept them with a larger --max-failures."
        raise too_many(failed, seen=seen, images=images, allowed=allowed, advice=what.strip())


def listed(failed: Sequence[tuple[str, str, str]], most: int) -> list[str]:
    """A line an image, the first `most`, and one that counts the others."""
    lines = [f"  {source}: {status}: {reason}" for source, status, reason in failed[:most]]
    return lines + ([f"  and {len(failed) - most} more"] if len(failed) > most else [])


def as_json(failed: Iterable[Failure]) -> list[dict[str, Any]]:
    """Failures as a result's JSON has them."""
    return [failure._asdict() for failure in failed]
