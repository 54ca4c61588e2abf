"""A part of a mining job: a command of its own that knows nothing of the others, such as a task of a Slurm array.

A part makes a run of neighbouring shards of the job, and writes what it made beside them under a hidden name. When all are done,
`join` writes the manifest from these files.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from univip_stream.errors import InputError, UsageError, counted
from univip_stream.mining import job as jobs
from univip_stream.mining.job import PART, Job, made_by
from univip_stream.mining.output import Output
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.manifest import (
    JOB,
    MANIFEST,
    MadeBy,
    made_by_of,
)

_FORMAT = "univip-stream/part/1"
_NAMED = 10
"""Number of missing parts that an error names."""


@dataclass(frozen=True, kw_only=True)
class PartOf:
    """Which part of a job: number 3 of 64."""

    number: int
    """From 1 to `of`."""
    of: int
    """Number of parts."""

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def file(self) -> str:
        """Name of the file with what the part made."""
        return self._file("json")

    @property
    def lock(self) -> str:
        """Name of the part's lock file."""
        return self._file("lock")

    def _file(self, suffix: str) -> str:
        return f".mining-part-{self.number:0{len(str(self.of))}d}-of-{self.of}.{suffix}"

    def numbers(self, shards: int) -> range:
        """Return the numbers of its shards, out of a job's.

        Raises:
            InputError: there are more parts than shards.

        """
        if self.of > shards:
            raise InputError(
                f"--part {self}: the set has {counted(shards, 'shard')}, fewer than parts; expected at most {shards} parts, or a "
                "larger --num-shards in all of them"
            )
        return range(shards * (self.number - 1) // self.of, shards * self.number // self.of)


def parse_part(text: str) -> PartOf:
    """Return the part that `3/64` means.

    Raises:
        UsageError: it means none.

    """
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UsageError(f"--part is {text!r}; expected the part's number, from 1 on, and how many there are, such as 3/64")
    return PartOf(number=int(number), of=int(of))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part made, as its file says."""

    part: PartOf
    """Which part it is."""
    made_by: MadeBy
    """What the manifest says of the job."""
    count: int
    """Number of shards of the whole job."""
    allowed: float
    """The most failures that are accepted in the whole job."""
    allowed_text: str
    """The same as the user wrote it."""
    shards: tuple[ShardEntry, ...]
    """Entries of its shards, in order."""

    def as_bytes(self) -> bytes:
        """Return the bytes of its file."""
        return json.dumps(
            {
                "format": _FORMAT,
                "part": self.part.number,
                "of": self.part.of,
                "allowed": self.allowed,
                "max_failures": self.allowed_text,
                **self.made_by.as_json(),
                "shards": [entry.as_json() for entry in self.shards],
            },
            ensure_ascii=False,
        ).encode()

    @classmethod
    def of(cls, data: bytes) -> "Part":
        """Read its file.

        Raises:
            ValueError: it is not one.

        """
        content: Any = json.loads(data)
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}; expected {_FORMAT!r}")
        made_by = MadeBy(**made_by_of(content))
        return cls(
            part=parse_part(f"{content['part']}/{content['of']}"),
            made_by=made_by,
            count=int(made_by.parameters["num_shards"]),
            allowed=float(content["allowed"]),
            allowed_text=str(content["max_failures"]),
            shards=tuple(ShardEntry.of(entry) for entry in content["shards"]),
        )


def carry_out_part(
    job: Job, part: PartOf, *, planned: Callable[[int], None], progress: Callable[[int], None]
) -> tuple[tuple[ShardEntry, ...], int]:
    """Write the missing shards of one part of a job. If run again, it does what is missing, to the same bytes.

    Args:
        job: the whole job.
        part: which part of it.
        planned: called once with the number of images in shards of the part that are finished already.
        progress: called with the number of images done since the last call.

    Returns:
        (entries of its shards, the number of images that were done now).

    Raises:
        InputError: the folder holds other shards or a part with other settings, more images failed than the whole job may have,
            or the set is finished and lacks a shard of this part.

    """
    out, numbers = job.out, part.numbers(len(job.names))
    with out.held(part.lock):
        jobs.refuse_other_shards(job)
        done = out.read(MANIFEST) is not None
        if not done:
            out.claim(JOB, jobs.parameters_file(job))
            jobs.refuse_other_shards(job)  # of two parts with other settings that began together one is refused here
        entries, todo = jobs.finished_and_not(job, numbers)
        if done and todo:
            raise InputError(
                f"{out.location}: the set is joined, and shard {job.names[min(todo)]} is to be mined again; run the same command "
                "without --part, which mines it and writes the manifest again"
            )
        waiting = sum(job.counts[number] for number in todo)
        planned(sum(job.counts[number] for number in numbers) - waiting)
        if not done:
            if todo:
                _forget(out, part, {job.names[number] for number in todo})
            jobs.upgrade_all(out, entries)
            jobs.mine_shards(job, todo, entries, progress)
            found = tuple(entries[job.names[number]] for number in numbers)
            out.write(
                part.file,
                Part(
                    part=part,
                    made_by=made_by(job),
                    count=len(job.names),
                    allowed=job.allowed,
                    allowed_text=job.allowed_text,
                    shards=found,
                ).as_bytes(),
            )
        return tuple(entries[job.names[number]] for number in numbers), waiting


def _forget(out: Output, part: PartOf, shards: set[str]) -> None:
    """Remove files of parts that say something of shards that are about to be made again."""
    for name in out.names():
        found = PART.fullmatch(name)
        if found is None or found[3] != "json" or (int(found[2]) == part.of and name != part.file):
            continue  # parts of the same division have other shards
        try:
            theirs = {entry.name for entry in Part.of(out.read(name) or b"").shards}
        except (ValueError, KeyError, TypeError):
            theirs = shards
        if theirs & shards:
            out.remove(name)
