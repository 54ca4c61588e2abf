"""A file on a web server that is read in pieces."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from univip_stream.storage.web import Client, Stream


class WebFile(io.RawIOBase):
    """One answer is read from beginning to end; where someone seeks, another is asked for from there on."""

    def __init__(self, client: "Client", location: str):
        self._client, self._location = client, location
        self._position = 0
        self._stream: Stream | None = client.stream(location, 0)
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
            self._let_go()
            self._stream, self._stream_at = self._client.stream(self._location, self._position), self._position
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        self._stream_at = self._position
        return len(piece)

    def close(self) -> None:
        self._let_go()
        super().close()

    def _let_go(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
