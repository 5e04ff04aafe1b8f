"""Compressed files: a gzip member or a Zstandard frame (RFC 8878) for each block, so that one can be read alone.

Where one begins and ends is read off the file itself, so that nothing else is needed to read it, and what is damaged
takes no other with it.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aperion.audit.blocks import BLOCK, CHUNK, chunks, whole_lines
from aperion.audit.files import sync_folder
from aperion.audit.index import Builder, load, path_of
from aperion.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aperion.audit.options import Codec

_SUFFIX: dict[Codec, str] = {"gzip": ".gz", "zstd": ".zst"}
_MAGIC: Final = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
_GZIP: Final = 31
"""What tells zlib that it is gzip."""
_PACKED: Final = 64 << 10
_AT_ONCE: Final = 2 * BLOCK
_FEW: Final = 512
_HELD: Final = 4 * BLOCK
"""Bytes of one frame that are kept until its end is known to be whole; a file of somebody else may be a single one."""


class DamagedError(OSError):
    """A compressed file, or a block of one, that cannot be unpacked."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What can be unpacked alone.

    Args:
        offset: in the file.
        size: in the file; 0 where more of the same frame follows, which then is none of ours.
        content: unpacked; empty where it is damaged.
    """

    offset: int
    size: int
    content: bytes


def compress(path: Path, codec: Codec, go_on: Callable[[], bool] = lambda: True) -> Path | None:
    """Replace a full file by a compressed one, with its index; waits for the disk.

    It can be cut short anywhere: the plain file goes last, and as long as it is there it counts.

    Args:
        path: of the file.
        codec: how.
        go_on: asked between two blocks.

    Returns:
        Where the compressed file is; None if it was not to go on, and the plain one stays.

    Raises:
        ConfigurationError: for zstd without the package for it.
        OSError: when the system refuses; the plain file stays.
    """
    pack = packer(codec)
    target = path.with_name(f"{path.name}{_SUFFIX[codec]}")
    new = path.with_name(f"{target.name}.new")
    new.unlink(missing_ok=True)
    builder = Builder()
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with path.open("rb") as source, os.fdopen(fd, "wb") as file:
            for content in whole_lines(chunks(source.fileno(), os.fstat(source.fileno()).st_size, BLOCK)):
                if not go_on():
                    new.unlink()
                    return None
                packed = pack(content)
                file.write(packed)
                builder.add(content, packed)
            file.flush()
            os.fsync(fd)
            builder.about(os.fstat(fd))
    except BaseException:
        with suppress(FileNotFoundError):
            new.unlink()
        raise
    new.rename(target)
    path_of(path).unlink(missing_ok=True)  # that of the plain file, which goes
    sync_folder(path.parent)
    builder.save(path_of(path))
    path.unlink()
    return target


def build(path: Path, compression: str) -> bool:
    """Write the index of a full file; return whether it is one that can have an index.

    Raises:
        ConfigurationError: for zstd without the package for it.
        OSError: when the system refuses.
    """
    builder = Builder()
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        builder.about(found)  # first: what is changed meanwhile is another file
        for frame in frames(file.fileno(), found.st_size, compression):
            if not frame.size:
                return False
            builder.add(frame.content, os.pread(file.fileno(), frame.size, frame.offset))
    builder.save(path_of(path))
    return True


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


def unpacked(content: bytes, compression: str) -> bytes:
    """Return the lines of one block.

    Raises:
        DamagedError: when it cannot be unpacked.
    """
    if not compression:
        return content
    try:
        return b"".join(piece for piece, _ in _unpacking(iter((content,)), compression))
    except _damages(compression) as error:
        raise DamagedError(f"the compressed content is damaged: {error}") from error


@contextmanager
def open_lines(path: Path, compression: str) -> Iterator[Iterator[bytes]]:
    """Open a file of a log for its lines, but for those that cannot be unpacked; not through a link.

    Raises:
        OSError: when the system refuses.
        ConfigurationError: for zstd without the package for it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        blocks = lines(fd, os.fstat(fd).st_size, compression)
        yield (line for block in blocks for line in block.splitlines(keepends=True))
    finally:
        os.close(fd)


def lines(fd: int, size: int, compression: str) -> Iterator[bytes]:
    """Yield what a file holds as blocks of whole lines; an empty one stands for what cannot be unpacked.

    Raises:
        ConfigurationError: for zstd without the package for it.
    """
    if not compression:
        return whole_lines(chunks(fd, size))
    return whole_lines(frame.content for frame in frames(fd, size, compression))


def beginning(fd: int, compression: str, most: int) -> bytes:
    """Return what a file begins with; nothing where that cannot be unpacked.

    Raises:
        ConfigurationError: for zstd without the package for it.
    """
    content = os.pread(fd, most, 0)
    if not compression:
        return content
    try:
        return bytes(_unpacker(compression).decompress(content, most))
    except _damages(compression):
        return b""


def ending(path: Path, fd: int, compression: str) -> bytes:
    """Return the last lines of a file, as far as they can be unpacked: of the last block, where an index tells it.

    Raises:
        ConfigurationError: for zstd without the package for it.
    """
    index = load(path, fd)
    if index is not None and index.blocks:
        last = index.blocks[-1]
        with suppress(DamagedError):
            return unpacked(os.pread(fd, last.size, last.offset), compression)
    return next(iter(deque(filter(None, lines(fd, os.fstat(fd).st_size, compression)), maxlen=1)), b"")


def frames(fd: int, size: int, compression: str) -> Iterator[Frame]:
    """Yield the parts of a file that can be read alone, one behind the other.

    Raises:
        ConfigurationError: for zstd without the package for it.
    """
    at = 0
    if not compression:
        for content in whole_lines(chunks(fd, size, BLOCK)):
            yield Frame(at, len(content), content)
            at += len(content)
        return
    damages = _damages(compression)
    while at < size:
        end = at
        try:
            for content, length in _unpacking(chunks(fd, size, _PACKED, at=at), compression):
                end = at + length
                if content:
                    yield Frame(at, length, content)
        except damages:
            end = _next_frame(fd, size, compression, at + 1)
            yield Frame(at, end - at, b"")
        at = end


def _next_frame(fd: int, size: int, compression: str, at: int) -> int:
    """Return where the next frame begins that can be unpacked; the end where there is none."""
    magic, damages = _MAGIC[compression], _damages(compression)
    while at < size:
        content = os.pread(fd, CHUNK, at)
        found = content.find(magic)
        while found >= 0:
            try:
                _unpacker(compression).decompress(
                    content[found : found + _FEW], _FEW
                )  # most fail here, and cost little
                for _ in _unpacking(chunks(fd, size, _PACKED, at=at + found), compression):
                    pass
            except damages:
                found = content.find(magic, found + 1)
            else:
                return at + found
        at += max(len(content) - len(magic) + 1, 1)
    return size


def _unpacking(source: Iterator[bytes], compression: str) -> Iterator[tuple[bytes, int]]:
    """Yield the content of one frame and how long it is in the source, as one, or in parts if it is none of ours.

    Only the last part comes with a length; nothing comes of a frame that is damaged, but for parts before the damage.

    Raises:
        EOFError: for a frame that is cut off; and what the unpacker raises for one that is damaged.
    """
    unpacker = _unpacker(compression)
    parts: list[bytes] = []
    held = taken = 0
    data = b""
    while not unpacker.eof:
        is_end = False
        if not data and getattr(unpacker, "needs_input", True):
            data = next(source, b"")
            taken += len(data)
            is_end = not data
        parts.append(unpacker.decompress(data, _AT_ONCE))
        data = getattr(unpacker, "unconsumed_tail", b"")  # zstd keeps that itself
        held += len(parts[-1])
        if is_end and not parts[-1] and not unpacker.eof:
            raise EOFError("it is cut off")
        if held > _HELD:
            yield b"".join(parts), 0
            parts, held = [], 0
    yield b"".join(parts), taken - len(unpacker.unused_data)


def _unpacker(compression: str) -> Any:
    return zlib.decompressobj(_GZIP) if compression == ".gz" else _zstd().ZstdDecompressor()


def _damages(compression: str) -> tuple[type[Exception], ...]:
    return (EOFError, zlib.error) if compression == ".gz" else (EOFError, _zstd().ZstdError)


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd  # type: ignore[import-not-found,no-redef,unused-ignore]  # the extra
        except ImportError as error:
            raise ConfigurationError("zstd needs a package; install aperion-bus[compress]") from error
    return zstd
