"""What an operator watches, as CloudWatch metrics: one per kind of lifecycle event, in the service's namespace.

Each is written at once, in CloudWatch's embedded metric format: a log line, so it costs no request, and it is there even if the
invocation dies a moment later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from idempotency.events import LeaseLost, Replayed, ReplicationConflict, ResultNotKept, TakenOver

if TYPE_CHECKING:
    from idempotency.events import Event

#: The alarms of template.yaml, and the duplicates.  Claims and completions are not here: Lambda counts invocations anyway, and
#: each call would cost a log line.
COUNTED: Final = (LeaseLost, Replayed, ReplicationConflict, ResultNotKept, TakenOver)


def count(event: Event) -> None:
    """An observer that counts what is rare, with the key that it happened to (its hash, never the payload)."""
    if isinstance(event, COUNTED):
        metrics = EphemeralMetrics()  # of its own: events come from several threads
        metrics.add_metric(name=type(event).__name__, unit=MetricUnit.Count, value=1)
        metrics.add_metadata("idempotency_key", event.key)
        metrics.flush_metrics()
