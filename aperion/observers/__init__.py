"""Those who are told what happens on a bus: audit log, metrics, spans, log lines, and the bus's own events."""
