"""One trace from a request through two events and three handlers, shown as a tree.

``--spans`` prints each span as it ends, too, with all its attributes.

Prints:
    internal  POST /orders
      producer  send order.placed
        consumer  process order.placed  shop.bill
          producer  send bill.sent
            consumer  process bill.sent  shop.file
              internal  write to the archive
        consumer  process order.placed  shop.pack
"""

import json
import sys

import aperion
from aperion import telemetry

bus = aperion.EventBus()


@bus.on("order.placed", name="shop.bill")
async def bill(event: aperion.Event) -> None:
    """Cause another event: its spans are below that of this handler."""
    await bus.emit("bill.sent", {"order": event.payload["order"]})


@bus.on("order.placed", name="shop.pack")
def pack(event: aperion.Event) -> None:
    """Work in a thread: the span is the current one there, too."""
    telemetry.set_span_attribute("shop.boxes", 2)


@bus.on("bill.sent", name="shop.file")
@telemetry.traced(name="write to the archive")
async def file(event: aperion.Event) -> None:
    """Have a span of its own inside that of the handler."""


async def main() -> None:
    """Handle one request, as a web framework would, with its span around it."""
    with telemetry.get_tracer("shop").start_as_current_span("POST /orders"), telemetry.correlation_from_trace():
        receipt = await bus.emit("order.placed", {"order": "A-7"})
    await receipt.settled()
    await bus.wait_settled()


def show_tree(spans: list) -> None:
    """Print the spans of one trace as a tree."""
    children: dict = {}
    for span in sorted(spans, key=lambda span: span["start_time"]):
        children.setdefault(span["parent_id"], []).append(span)

    def show(parent: str | None, depth: int) -> None:
        for span in children.get(parent, ()):
            handler = span["attributes"].get("messaging.destination.subscription.name", "")
            print(
                f"{'  ' * depth}{span['kind'].removeprefix('SpanKind.').lower():<9} {span['name']}  {handler}".rstrip()
            )
            show(span["context"]["span_id"], depth + 1)

    show(None, 0)


if __name__ == "__main__":
    # console=True prints each span as it ends; here they are kept, and shown as a tree.
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    sdk = telemetry.configure(service_name="shop", console="--spans" in sys.argv)
    sdk.tracer_provider.add_span_processor(SimpleSpanProcessor(kept))
    aperion.run(bus, main)
    show_tree([json.loads(span.to_json()) for span in kept.get_finished_spans()])
    sdk.shutdown()
