"""Compressed files: a gzip member or a Zstandard frame (RFC 8878) for each block, so that one can be read alone."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aperion.audit.files import sync_folder
from aperion.audit.index import Builder, blocks, path_of
from aperion.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from aperion.audit.options import Codec

_SUFFIX: dict[Codec, str] = {"gzip": ".gz", "zstd": ".zst"}


def compress(path: Path, codec: Codec) -> Path:
    """Replace a full file by a compressed one, with its index; waits for the disk.

    It can be cut short anywhere: the plain file goes last, and as long as it is there it counts.

    Raises:
        ConfigurationError: for zstd without the package for it.
        OSError: when the system refuses; the plain file stays.
    """
    pack = packer(codec)
    target = path.with_name(f"{path.name}{_SUFFIX[codec]}")
    new = path.with_name(f"{target.name}.new")
    new.unlink(missing_ok=True)
    builder, offset = Builder(), 0
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with path.open("rb") as source, os.fdopen(fd, "wb") as file:
            for content in blocks(source):
                packed = pack(content)
                file.write(packed)
                builder.add(content, offset, len(packed))
                offset += len(packed)
            file.flush()
            os.fsync(fd)
    except BaseException:
        with suppress(FileNotFoundError):
            new.unlink()
        raise
    new.rename(target)
    path_of(path).unlink(missing_ok=True)  # that of the plain file, which goes
    sync_folder(path.parent)
    builder.save(path_of(path), offset)
    path.unlink()
    return target


def packer(codec: Codec) -> Any:
    """Return the function that compresses one block.

    Raises:
        ConfigurationError: for zstd without the package for it.
    """
    if codec == "gzip":
        return lambda content: gzip.compress(content, 6, mtime=0)
    zstd = _zstd()
    options = {zstd.CompressionParameter.checksum_flag: 1}  # gzip has one anyway
    return lambda content: zstd.compress(content, options=options)


class DamagedError(OSError):
    """A compressed file, or a block of one, that cannot be unpacked."""


def unpacked(content: bytes, compression: str) -> bytes:
    """Return the lines of one block.

    Raises:
        DamagedError: when it cannot be unpacked.
    """
    if not compression:
        return content
    try:
        return gzip.decompress(content) if compression == ".gz" else bytes(_zstd().decompress(content))
    except _damages(compression) as error:
        raise _damaged(error) from error


def open_lines(path: Path, compression: str) -> BinaryIO:
    """Open a file of a log for reading, compressed or not; not through a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return unpacking(os.fdopen(fd, "rb"), compression)


def unpacking(file: BinaryIO, compression: str) -> BinaryIO:
    """Return a file that yields the lines of another, compressed or not, and closes with it.

    Reading from it raises ``DamagedError`` where it cannot be unpacked.
    """
    if not compression:
        return file
    content = gzip.GzipFile(fileobj=file) if compression == ".gz" else _zstd().ZstdFile(file, "rb")
    return io.BufferedReader(_Unpacking(content, file, compression), 1 << 16)


class _Unpacking(io.RawIOBase):
    """A compressed file that closes with the file below it, and has one error for all damage."""

    def __init__(self, content: Any, file: BinaryIO, compression: str) -> None:
        self._content = content
        self._file = file
        self._damages = _damages(compression)

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the file below."""
        return self._file.fileno()

    def readinto(self, buffer: Any) -> int:
        """Unpack as much as there is room for."""
        try:
            return int(self._content.readinto(buffer))
        except self._damages as error:
            raise _damaged(error) from error

    def close(self) -> None:
        """Close both."""
        super().close()
        self._file.close()


def _damages(compression: str) -> tuple[type[Exception], ...]:
    return (EOFError, gzip.BadGzipFile, zlib.error) if compression == ".gz" else (EOFError, _zstd().ZstdError)


def _damaged(error: Exception) -> DamagedError:
    return DamagedError(f"the compressed content is damaged: {error}")


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd  # type: ignore[import-not-found,no-redef,unused-ignore]  # the extra
        except ImportError as error:
            raise ConfigurationError("zstd needs a package; install aperion-bus[compress]") from error
    return zstd
