"""The engine of a bus: admission, queue, execution, settlement, life. It owns the bus's tasks; docs/architecture.md."""
