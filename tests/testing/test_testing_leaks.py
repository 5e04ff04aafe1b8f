"""What outlives a user's test is found, named, and shown where it was made."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar, copy_context

import anyio
import anyio.to_thread
import pytest

from aperion import Event, EventBus, Router
from aperion.testing import no_leaks

pytestmark = pytest.mark.anyio


async def test_a_block_that_cleans_up_passes() -> None:
    """Tasks that end, threads that end, idle threads of pools, subscriptions that are ended, buses that stop."""
    outside = EventBus()
    async with outside, no_leaks():
        async with EventBus() as bus, anyio.create_task_group() as group:

            @bus.on("order.*")
            def handle(event: Event) -> None: ...

            group.start_soon(anyio.sleep, 0.01)
            await bus.dispatch("order.placed", {})
            await anyio.to_thread.run_sync(time.sleep, 0)
            await asyncio.to_thread(time.sleep, 0)
            outside.unsubscribe(outside.subscribe(handle, "order.*"))
            ended = outside.subscribe(handle, "order.*")
            await outside.dispatch("order.placed", {})  # its thread is idle afterwards
            outside.unsubscribe(ended)
        threading.Thread(target=time.sleep, args=(0.02,)).start()  # ends in time
        ending = asyncio.create_task(anyio.sleep(60))
        ending.cancel()


async def test_a_task_that_is_left_is_named_with_where_it_was_made_and_where_it_is() -> None:
    async def poll() -> None:
        await anyio.sleep(60)  # where it is

    with pytest.raises(AssertionError) as caught:
        async with no_leaks(grace=0.01):
            task = asyncio.create_task(poll(), name="poller")  # where it was made
    task.cancel()

    told = str(caught.value)
    assert "asyncio/tasks.py" not in told.split("now at")[0]
    assert told.startswith("left behind:\n  task 'poller' runs ")
    assert "poll" in told
    made, now = told.split("now at")
    assert "# where it was made" in made
    assert "# where it is" in now


async def test_tasks_are_made_as_ever_while_they_are_watched() -> None:
    """With their name, and in the context that they are given."""
    number: ContextVar[int] = ContextVar("number", default=0)
    context = copy_context()
    context.run(number.set, 7)

    async def look() -> tuple[int, str]:
        return number.get(), asyncio.current_task().get_name()

    async with no_leaks():
        task = asyncio.get_running_loop().create_task(look(), name="looker", context=context)
        assert await task == (7, "looker")


async def test_a_task_of_another_factory_is_found_too_and_the_factory_is_put_back() -> None:
    made: list[asyncio.Task] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine, **options) -> asyncio.Task:
        made.append(asyncio.Task(coroutine, loop=loop, **options))
        return made[-1]

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        with pytest.raises(AssertionError, match="left behind"):
            async with no_leaks(grace=0.01):
                task = asyncio.create_task(anyio.sleep(60))
        assert loop.get_task_factory() is factory
        assert task in made
        task.cancel()
    finally:
        loop.set_task_factory(None)


async def test_a_thread_that_is_left_is_named_with_where_it_was_made_and_where_it_is() -> None:
    end = threading.Event()

    def listen() -> None:
        end.wait(10)  # where it is

    with pytest.raises(AssertionError) as caught:
        async with no_leaks(grace=0.01):
            threading.Thread(target=listen, name="listener").start()  # where it was made
    end.set()

    made, now = str(caught.value).split("now at")
    assert "thread 'listener'" in made
    assert "# where it was made" in made
    assert "# where it is" in now


async def test_a_handler_that_is_stuck_in_a_thread_is_left_behind() -> None:
    end = threading.Event()
    with pytest.raises(AssertionError, match=r"thread 'aperion-worker'(.|\n)*# where it is"):
        async with no_leaks(grace=0.01), EventBus(handler_timeout=0.01) as bus:

            @bus.on("order.*")
            def hang(event: Event) -> None:
                end.wait(10)  # where it is

            await bus.dispatch("order.placed", {})
    end.set()


async def test_a_subscription_to_a_bus_that_stays_is_named_with_where_it_was_made() -> None:
    outside, router = EventBus(), Router()

    async def greet(event: Event) -> None: ...

    with pytest.raises(AssertionError) as caught:
        async with no_leaks():
            outside.subscribe(greet, ["user.*", "chat.*"], name="greeter")  # where it was made
            inside = EventBus()
            inside.subscribe(greet, "user.*", name="ends with its bus")

    assert "subscription greeter to user.*, chat.*: unsubscribe it" in str(caught.value)
    assert "# where it was made" in str(caught.value)
    assert "ends with its bus" not in str(caught.value)

    router.subscribe(greet, "order.*", name="included")
    with pytest.raises(AssertionError, match="subscription included"):
        async with no_leaks():
            outside.include(router)


async def test_what_was_there_before_is_nobodys_fault_and_an_error_of_the_block_comes_first() -> None:
    task = asyncio.create_task(anyio.sleep(60))
    async with no_leaks():
        pass
    with pytest.raises(KeyError, match="first"):
        async with no_leaks():
            late = asyncio.create_task(anyio.sleep(60))
            raise KeyError("first")
    task.cancel()
    late.cancel()


async def test_nothing_stays_patched() -> None:
    start, add, init = threading.Thread.start, Router._add, Router.__init__
    async with no_leaks():
        assert threading.Thread.start is not start

    assert (threading.Thread.start, Router._add, Router.__init__) == (start, add, init)
