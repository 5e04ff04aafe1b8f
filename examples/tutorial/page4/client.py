"""Sends one request to the shop, without a server."""

import asyncio

import httpx
from shop import app


async def main() -> None:
    """Start the application, send one request, stop the application."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        response = await client.post(
            "/orders",
            json={"order_id": "o-1", "email": "ada@example.com", "cents": 4900},
            headers={"X-Correlation-ID": "req-42"},
        )
        print(response.status_code, response.headers["X-Correlation-ID"])


asyncio.run(main())
