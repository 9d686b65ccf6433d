"""The metrics of the server, in Prometheus's text format."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from mlx_gpt.generation.scheduler import Scheduler

disable_created_metrics()  # the library would add a line with the time of creation for each counter

# Upper bounds of the histograms' buckets, in seconds.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class ModelMetrics(NamedTuple):
    """The counters and histograms of one model."""

    prompt_tokens: Counter
    tokens: Counter
    first_token: Histogram
    next_token: Histogram


class Metrics:
    """Counters, histograms and gauges of one server, in a registry of its own.

    With several models, all but the number of requests have the label `model`. The gauges read the schedulers whenever
    the metrics are requested.

    Args:
        schedulers: The scheduler of each model, by the model's id.
    """

    def __init__(self, schedulers: Mapping[str, Scheduler]):
        self._registry = CollectorRegistry()
        common = {"namespace": "mlxgpt", "registry": self._registry}
        self.requests = Counter("requests", "Requests; status gone if the client left.", ["path", "status"], **common)
        self._labelled = len(schedulers) > 1
        common["labelnames"] = ["model"] if self._labelled else []
        seconds = common | {"buckets": SECONDS}
        self._models = ModelMetrics(
            Counter("prompt_tokens", "Tokens of accepted prompts.", **common),
            Counter("generated_tokens", "Tokens generated.", **common),
            Histogram("first_token_seconds", "From request to first token, in seconds.", **seconds),
            Histogram("next_token_seconds", "Between two tokens, in seconds.", **seconds),
        )
        for name, about, value in (
            ("texts_active", "Texts being generated.", lambda scheduler: scheduler.num_active),
            ("texts_waiting", "Texts in the queue.", lambda scheduler: scheduler.num_waiting),
            ("slots", "Texts that can be generated at once.", lambda scheduler: scheduler.num_slots),
            ("engine_faults", "Passes of the scheduler that failed.", lambda scheduler: scheduler.num_faults),
            ("healthy", "1 if generation makes progress or is idle, otherwise 0.", lambda s: int(s.healthy)),
        ):
            gauge = Gauge(name, about, **common)
            for id, scheduler in schedulers.items():
                self._child(gauge, id).set_function(partial(value, scheduler))

    def of(self, model: str) -> ModelMetrics:
        """The counters and histograms of the model with this id."""
        return ModelMetrics(*(self._child(metric, model) for metric in self._models))

    def _child(self, metric: Metric, model: str) -> Metric:
        return metric.labels(model) if self._labelled else metric

    def text(self) -> bytes:
        """The current values, as /metrics returns them."""
        return generate_latest(self._registry)
