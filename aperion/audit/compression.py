"""Compressed files: a gzip member or a Zstandard frame (RFC 8878) for each block, so that one can be read alone."""

from __future__ import annotations

import gzip
import io
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aperion.audit.files import sync_folder
from aperion.audit.index import Builder, blocks, path_of
from aperion.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

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
    return _zstd().compress if codec == "zstd" else lambda content: gzip.compress(content, 6, mtime=0)


def unpacked(content: bytes, compression: str) -> bytes:
    """Return the lines of one block."""
    if compression == ".gz":
        return gzip.decompress(content)
    return bytes(_zstd().decompress(content)) if compression == ".zst" else content


def open_lines(path: Path, compression: str) -> Any:
    """Open a file of a log for reading, compressed or not; not through a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return unpacking(os.fdopen(fd, "rb"), compression)


def unpacking(file: Any, compression: str) -> Any:
    """Return a file that yields the lines of another, compressed or not, and closes with it."""
    if compression == ".gz":
        return _Unpacking(gzip.GzipFile(fileobj=file), file)
    return _Unpacking(_zstd().ZstdFile(file, "rb"), file) if compression == ".zst" else file


class _Unpacking(io.BufferedReader):
    """A compressed file that closes with the file below it."""

    def __init__(self, unpacking: Any, file: Any) -> None:
        super().__init__(unpacking, 1 << 16)
        self._file = file

    def close(self) -> None:
        """Close both."""
        super().close()
        self._file.close()


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd  # type: ignore[import-not-found,no-redef,unused-ignore]  # the extra
        except ImportError as error:
            raise ConfigurationError("zstd needs a package; install aperion-bus[compress]") from error
    return zstd
