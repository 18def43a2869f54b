"""The shell's own figures for Prometheus: answers by route and status, how long they took, and what was turned away."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Figures:
    """Counters of one server process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "palate_http_answers", "Answers by route and status.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "palate_http_seconds",
            "Seconds from the whole request to the answer.",
            ("route",),
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._refused = Counter(
            "palate_http_turned_away", "Requests that no route saw, by code.", ("code",), registry=self._registry
        )
        self._in_flight = Gauge("palate_http_in_flight", "Requests at work now.", registry=self._registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer of a route, such as `POST /v1/events`."""
        self._answers.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def turned_away(self, code: str) -> None:
        """Count one request that limits or missing keys ended."""
        self._refused.labels(code).inc()

    def text(self, in_flight: int) -> bytes:
        """Everything in the text format of Prometheus."""
        self._in_flight.set(in_flight)
        return generate_latest(self._registry)
