"""Metrics for Prometheus, and a watchdog for handlers that hold up the loop.

Needs: pip install "aperion-bus[prometheus]" httpx

Prints:
    aperion_events_emitted_total{event_type="order.placed"} 3.0
    aperion_deliveries_total{event_type="order.placed",outcome="ok",subscription="shop.pack"} 3.0
    aperion_deliveries_total{event_type="order.placed",outcome="failed",subscription="shop.pack"} 1.0
    aperion_retries_total{event_type="order.placed",subscription="shop.pack"} 1.0
"""

import httpx

import aperion
from aperion.integrations.prometheus import PrometheusMetrics

metrics = PrometheusMetrics()
bus = aperion.EventBus(metrics=metrics, watchdog=True)
attempts: list[str] = []
app = metrics.app()  # FastAPI: app.mount("/metrics", metrics.app())


@bus.on("order.placed", name="shop.pack", retry=aperion.Retry(attempts=2, wait_initial=0.01))
async def pack(event: aperion.Event) -> None:
    """Fail once: a retry, which is counted as one."""
    attempts.append(event.payload["order"])
    if attempts.count("A-2") == 1 and event.payload["order"] == "A-2":
        raise ConnectionError("the warehouse does not answer")


async def main() -> None:
    """Emit three events, then look at the page as Prometheus does."""
    for number in range(3):
        await bus.emit("order.placed", {"order": f"A-{number}"})
    await bus.wait_settled()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        page = (await client.get("/metrics")).text
    for line in page.splitlines():
        if line.startswith(("aperion_events_emitted_total", "aperion_deliveries_total", "aperion_retries_total")):
            print(line)


if __name__ == "__main__":
    aperion.run(bus, main)
