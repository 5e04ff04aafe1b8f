"""Ask a bus over HTTP whether it is well, and watch its events in a browser; under a real server.

Needs: pip install "aperion-bus[fastapi]" httpx

Prints:
    GET /bus/health: 200, ok
    GET /bus/stats without a password: 401
    GET /bus/stats with it: 200, 1 event accepted
    event: order.placed
    data: 1 order, e-mail [REDACTED_EMAIL]
"""

import asyncio
import json
import socket
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException

import aperion
from aperion.integrations.fastapi import AppResponse, ServerSentEvents, StatusApp, lifespan, status_router

bus = aperion.EventBus()
app = FastAPI(lifespan=lifespan(bus))


async def login(password: Annotated[str, Header()] = "") -> None:
    """Let nobody in who does not know the word."""
    if password != "sesame":  # noqa: S105 - an example
        raise HTTPException(401)


app.include_router(status_router(bus), prefix="/bus/private", dependencies=[Depends(login)])
app.mount("/bus", StatusApp(bus))  # for the probes of an orchestrator: /bus/health/live, /bus/health/ready

orders = ServerSentEvents(bus, "order.*", max_clients=50)


@app.get("/orders/live", dependencies=[Depends(login)])
async def watch_orders() -> AppResponse:
    """Stream orders: new EventSource("/orders/live").addEventListener("order.placed", show)."""
    return AppResponse(orders)


async def main() -> None:
    """Serve, and be the browser too."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        await look(client)
    server.should_exit = True
    await serving


async def look(client: httpx.AsyncClient) -> None:
    """Ask for what there is."""
    sesame = {"password": "sesame"}
    health = await client.get("/bus/health")
    print(f"GET /bus/health: {health.status_code}, {health.json()['status']}")
    async with client.stream("GET", "/orders/live", headers=sesame) as response:
        lines = response.aiter_lines()
        await anext(lines)  # a comment, which says that the stream has begun
        await bus.emit("order.placed", {"orders": 1, "mail": "alice@example.com"})
        stats = await client.get("/bus/private/stats")
        print(f"GET /bus/stats without a password: {stats.status_code}")
        stats = await client.get("/bus/private/stats", headers=sesame)
        print(f"GET /bus/stats with it: {stats.status_code}, {stats.json()['accepted']} event accepted")
        await show(lines)


async def show(lines: Any) -> None:
    """Print the first event."""
    async for line in lines:
        if line.startswith("event: "):
            print(line)
        if line.startswith("data: "):
            payload = json.loads(line.removeprefix("data: "))["payload"]
            print(f"data: {payload['orders']} order, e-mail {payload['mail']}")
            return


if __name__ == "__main__":
    asyncio.run(main())
