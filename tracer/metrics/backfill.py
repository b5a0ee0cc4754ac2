"""A capture as OpenMetrics with timestamps, which `promtool tsdb create-blocks-from openmetrics` takes.

What is scraped gets the labels of its target. This is not, so it says itself what they would be.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracer.capture.capture import Capture
from tracer.metrics import families, history
from tracer.metrics.series import name
from tracer.model import Account

JOB = "shmtrace"


def render(account: Account, capture: Capture) -> Iterator[bytes]:
    """The metrics at each moment. Raises as Capture.each() does."""
    target = {"job": JOB, "instance": name(account.session.host)}
    return families.open_metrics(families.families(history.moments(account, capture), account.session, target))
