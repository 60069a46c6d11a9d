"""The service's own counters, in Prometheus form, in a registry per service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """What `/metrics` shows; gauges over the fleet are set when it is read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.messages = Counter("edge_ingest_messages", "MQTT messages received", ["leaf"], registry=self.registry)
        self.events = Counter("edge_ingest_events", "Telemetry events committed", registry=self.registry)
        self.duplicates = Counter("edge_ingest_duplicates", "Batches received again", registry=self.registry)
        self.rejected = Counter("edge_ingest_rejected", "Messages dropped", ["reason"], registry=self.registry)
        self.commits = Histogram(
            "edge_ingest_commit_seconds",
            "Duration of a group commit",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3),
            registry=self.registry,
        )
        self.failures = Counter("edge_ingest_commit_failures", "Group commits that failed", registry=self.registry)
        self.lag = Gauge("edge_ingest_lag_seconds", "Age of the newest event at its commit", registry=self.registry)
        self.waiting = Gauge(
            "edge_ingest_waiting_messages", "Messages received and not yet committed", registry=self.registry
        )
        self.broker_restarts = Counter("edge_broker_restarts", "Restarts of the broker process", registry=self.registry)
        self.connected = Gauge(
            "edge_broker_connected", "1 while the service has its broker session", registry=self.registry
        )
        self.devices = Gauge("edge_devices", "Devices by status", ["status"], registry=self.registry)
        self.outbox_rows = Gauge("edge_outbox_rows", "Events that wait on all devices", registry=self.registry)
        self.outbox_dropped = Gauge("edge_outbox_dropped", "Events that devices had to drop", registry=self.registry)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return bytes(generate_latest(self.registry))
