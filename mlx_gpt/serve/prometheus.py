"""The metrics of the server, in Prometheus's text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from mlx_gpt.generation.scheduler import Scheduler

disable_created_metrics()  # the library would add a line with the time of creation for each counter

# Upper bounds of the histograms' buckets, in seconds.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters, histograms and gauges of one server, in a registry of its own.

    The gauges read the scheduler whenever the metrics are requested.
    """

    def __init__(self, scheduler: Scheduler):
        self._registry = CollectorRegistry()
        common = {"namespace": "mlxgpt", "registry": self._registry}
        self.requests = Counter("requests", "Requests; status gone if the client left.", ["path", "status"], **common)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of accepted prompts.", **common)
        self.tokens = Counter("generated_tokens", "Tokens generated.", **common)
        self.first_token = Histogram(
            "first_token_seconds", "From request to first token, in seconds.", buckets=SECONDS, **common
        )
        self.next_token = Histogram("next_token_seconds", "Between two tokens, in seconds.", buckets=SECONDS, **common)
        for name, about, value in (
            ("texts_active", "Texts being generated.", lambda: scheduler.num_active),
            ("texts_waiting", "Texts in the queue.", lambda: scheduler.num_waiting),
            ("slots", "Texts that can be generated at once.", lambda: scheduler.num_slots),
            ("engine_faults", "Passes of the scheduler that failed.", lambda: scheduler.num_faults),
            ("healthy", "1 if generation makes progress or is idle, otherwise 0.", lambda: int(scheduler.healthy)),
        ):
            Gauge(name, about, **common).set_function(value)

    def text(self) -> bytes:
        """The current values, as /metrics returns them."""
        return generate_latest(self._registry)
