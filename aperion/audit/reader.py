"""What can be asked of a log by its path, whether this process writes it or not."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from aperion.audit.following import POLL, Following, follow
from aperion.audit.parts import clear
from aperion.audit.query import Query
from aperion.audit.reading import Reading

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Unpack

    from aperion.audit.query import AuditRecord, Wanted
    from aperion.audit.signing import VerifyKey
    from aperion.audit.trace import TraceNode
    from aperion.audit.verification import Verification


class Reader:
    """The side of a log that reads; nothing of it needs the log to be open."""

    __slots__ = ("path",)

    path: Path

    def read(self, **wanted: Unpack[Wanted]) -> Reading:
        """Return the records that are wanted, oldest first; open or not, and while it is written.

        Iterate with ``for``, or with ``async for``, which reads in a worker thread. Memory stays constant.

        Args:
            wanted: see ``Query``; without any, all records.

        Raises:
            ConfigurationError: for what cannot be looked for.
        """
        return Reading(self.path, Query(**wanted))

    def follow(self, *, from_end: bool = True, **wanted: Unpack[Wanted]) -> Iterator[AuditRecord]:
        """Yield records as they are written, from file to file, for ever or until ``limit``; waits for each."""
        return follow(self.path, Query(**wanted), from_end=from_end)

    async def afollow(self, *, from_end: bool = True, **wanted: Unpack[Wanted]) -> AsyncIterator[AuditRecord]:
        """Do what ``follow`` does without holding up the loop."""
        with closing(Following(self.path, Query(**wanted), from_end=from_end)) as following:
            while not following.ended:
                for found in (records := await anyio.to_thread.run_sync(following.available)):
                    yield found
                if not records:
                    await anyio.sleep(POLL)

    def trace(self, correlation_id: str) -> tuple[TraceNode, ...]:
        """Return the events with a correlation id as trees: each under the event that caused it, with its deliveries."""
        from aperion.audit.trace import trace

        return trace(self.path, correlation_id)

    def verify(
        self,
        *,
        keys: Sequence[VerifyKey] = (),
        checkpoints: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Follow the chain through all files, as ``aperion.audit.verify`` does; waits, and takes a while."""
        from aperion.audit.verification import verify

        return verify(self.path, keys=keys, checkpoints=checkpoints, progress=progress)

    def clear(self) -> list[Path]:
        """Remove all files of this log, full ones, indexes and what a killed process left included. Waits.

        The next record begins another log; that this one ended shows against checkpoints kept elsewhere
        only. For old files alone there is ``Rotation(keep=...)``.

        Returns:
            Their paths; none when there was no log.

        Raises:
            AuditUnavailable: when the log is open, here or in another process.
        """
        return clear(self.path)
