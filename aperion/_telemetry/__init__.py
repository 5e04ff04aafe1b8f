"""What a bus tells OpenTelemetry; loaded by a bus only when an SDK is configured."""
