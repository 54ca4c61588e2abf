"""A seekable file on a web server, read in pieces."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from univip_stream.storage.web import BodyStream, Client


class WebFile(io.RawIOBase):
    """Reads one answer from beginning to end; after a seek, it makes a new request from that position."""

    def __init__(self, client: "Client", location: str):
        self._client, self._location = client, location
        self._position = 0
        self._stream: BodyStream | None = client.stream(location, 0)
        self._stream_at = 0
        self._size: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            if self._size is None:
                self._size = self._client.size(self._location)
            offset += self._size
        if offset < 0:
            raise ValueError(f"position {offset} lies before the file")
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        if self._stream is None or self._stream_at != self._position:
            self._close_stream()
            self._stream, self._stream_at = self._client.stream(self._location, self._position), self._position
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        self._stream_at = self._position
        return len(piece)

    def close(self) -> None:
        self._close_stream()
        super().close()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
