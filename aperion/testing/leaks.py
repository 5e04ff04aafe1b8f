"""What outlives a test that should have ended with it: tasks, threads and subscriptions."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import threading
import traceback
from contextlib import ExitStack, asynccontextmanager, contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from aperion.router import Router
from aperion.testing.running import wait
from aperion.testing.stacks import of_coroutine, shown_from

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import FrameType

    from aperion.subscriptions import Subscription

_POOLS = ("concurrent.futures.thread", "anyio._backends._asyncio", "aperion.engine.threads")
_WAITING = ("threading", "queue")


class _Watch:
    """What there was when the block began, and what was made since, and where."""

    # Mutable: where things were made, and which routers, as they are.
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks = asyncio.all_tasks(self.loop)
        self.threads = set(threading.enumerate())
        self.made: WeakKeyDictionary[object, str] = WeakKeyDictionary()
        self.routers: WeakSet[Router] = WeakSet()  # made inside: what subscribes to them ends with them
        self.subscriptions: list[tuple[Router, Subscription]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note of what is made while the block lasts."""
        before = self.loop.get_task_factory()
        with ExitStack() as stack:
            stack.enter_context(_around(threading.Thread, "start", self._note_made))
            stack.enter_context(_around(Router, "__init__", lambda router, *_: self.routers.add(router)))
            stack.enter_context(_around(Router, "_add", self._note_subscription))
            self.loop.set_task_factory(self._make_task(before))
            stack.callback(self.loop.set_task_factory, before)
            yield

    def _note_made(self, thing: object, *_: object) -> None:
        frames = [f for f in traceback.walk_stack(sys._getframe(2)) if not _is_machinery(f[0])]
        self.made[thing] = "".join(traceback.StackSummary.extract(reversed(frames[:4])).format()).rstrip()

    def _note_subscription(self, router: Router, subscription: Subscription) -> None:
        if router not in self.routers:
            self._note_made(subscription)
            self.subscriptions.append((router, subscription))

    def _make_task(self, before: Any) -> Callable[..., asyncio.Task[Any]]:
        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            task = before(loop, coroutine, **options) if before else asyncio.Task(coroutine, loop=loop, **options)
            self._note_made(task)
            return task

        return make

    def left(self) -> list[str]:
        """Tell of what is left."""
        frames = sys._current_frames()
        known = {*self.tasks, asyncio.current_task()}
        tasks = [task for task in asyncio.all_tasks(self.loop) - known if not _is_of_runner(task)]
        threads = [t for t in threading.enumerate() if t not in self.threads and not _is_idle(frames.get(t.ident or 0))]
        return [
            *(self._of_task(task) for task in tasks),
            *(self._of_thread(thread, frames.get(thread.ident or 0)) for thread in threads),
            *(self._of_subscription(s) for router, s in self.subscriptions if _is_there(router, s)),
        ]

    def _of_task(self, task: asyncio.Task[Any]) -> str:
        coroutine = task.get_coro()
        name = getattr(coroutine, "__qualname__", repr(coroutine))
        return self._told(f"task {task.get_name()!r} runs {name}", task, of_coroutine(coroutine))

    def _of_thread(self, thread: threading.Thread, frame: FrameType | None) -> str:
        return self._told(f"thread {thread.name!r}", thread, shown_from(frame) if frame is not None else "")

    def _of_subscription(self, subscription: Subscription) -> str:
        what = f"subscription {subscription.name} to {', '.join(subscription.patterns)}"
        return self._told(f"{what}: unsubscribe it, or use a bus that ends with the test", subscription, "")

    def _told(self, what: str, thing: object, stack: str) -> str:
        parts = [what]
        if made := self.made.get(thing):
            parts += ["  made at", textwrap.indent(made, "  ")]
        if stack:
            parts += ["  now at", textwrap.indent(stack, "  ")]
        return "\n".join(parts)


@asynccontextmanager
async def no_leaks(*, grace: float = 0.5) -> AsyncIterator[None]:
    """Fail when the block leaves something behind: a task, a thread, or a subscription to a bus that stays.

    What waits idly in a pool (worker threads of anyio, asyncio, or of a bus) is not left behind, and
    neither is a subscription to a bus or router that was made inside.

    Args:
        grace: real seconds that tasks and threads have to end.

    Raises:
        AssertionError: naming each, where it was made, and where it is now.
    """
    watch = _Watch()
    with watch.watching():
        yield
    until = monotonic() + grace
    while (left := watch.left()) and monotonic() < until:
        if not any(each.startswith(("task", "thread")) for each in left):
            break
        await wait(0.002)
    if left:
        raise AssertionError("left behind:\n" + textwrap.indent("\n".join(left), "  "))


@contextmanager
def _around(owner: type, name: str, note: Callable[..., object]) -> Iterator[None]:
    """Have each call of a method noted."""
    method = getattr(owner, name)

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        note(self, *args)
        return method(self, *args, **options)

    setattr(owner, name, noted)
    try:
        yield
    finally:
        setattr(owner, name, method)


def _is_of_runner(task: asyncio.Task[Any]) -> bool:
    """Tell whether a task is how anyio's pytest plugin gets into the loop, for one step of a fixture."""
    return getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")


def _is_there(router: Router, subscription: Subscription) -> bool:
    return subscription in router._subscriptions


def _is_machinery(frame: FrameType) -> bool:
    """Tell whether a frame is of what makes tasks and threads, and not of who wanted them."""
    module = str(frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in {"asyncio", "anyio", "threading", "aperion", "contextlib", "uvloop"}


def _is_idle(frame: FrameType | None) -> bool:
    """Tell whether a thread has ended, or waits in a pool for something to do."""
    while frame is not None and str(frame.f_globals.get("__name__")) in _WAITING:
        frame = frame.f_back
    return frame is None or str(frame.f_globals.get("__name__")) in _POOLS
