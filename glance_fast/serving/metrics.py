"""What a server counts, in Prometheus' text format.

By hand: three families of numbers and a histogram, for which the client library brings registries, collectors
of its own and a state that is global to the process.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper ends of the histogram's buckets, in seconds.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# How a request ends.
OUTCOMES = ("scored", "damaged", "too_large", "busy", "slow", "gone", "failed")


class Metrics:
    """Counts of requests and batches, and how long answers took. Of use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = self._scoring = 0.0
        self._batches = self._images = 0

    def answered(self, outcome: str, seconds: float) -> None:
        """Count a request by how it ended; those that were scored, by their seconds too."""
        with self._lock:
            self._outcomes[outcome] += 1
            if outcome == "scored":
                self._buckets[bisect_left(BUCKETS, seconds)] += 1
                self._seconds += seconds

    def batch(self, images: int, seconds: float) -> None:
        """Count a batch that was scored."""
        with self._lock:
            self._batches += 1
            self._images += images
            self._scoring += seconds

    def text(self, waiting: int) -> str:
        """All of it, and how many images wait."""
        with self._lock:
            counts = list(accumulate(self._buckets))
            ends = [*map(str, BUCKETS), "+Inf"]
            histogram: dict[str, float] = {
                f'_bucket{{le="{end}"}}': n for end, n in zip(ends, counts, strict=True)
            }
            histogram |= {"_sum": round(self._seconds, 6), "_count": counts[-1]}
            outcomes = {f'{{outcome="{name}"}}': n for name, n in self._outcomes.items()}
            return "".join(
                (
                    _family(
                        "requests_total", "counter", "Requests for a score, by how they ended.", outcomes
                    ),
                    _family("request_seconds", "histogram", "From a request to its score.", histogram),
                    _family("waiting_images", "gauge", "Images received, not answered yet.", {"": waiting}),
                    _family("batches_total", "counter", "Batches that were scored.", {"": self._batches}),
                    _family("batch_images_total", "counter", "Images in those batches.", {"": self._images}),
                    _family(
                        *("batch_seconds_total", "counter", "Seconds that they took, each its own, summed."),
                        {"": round(self._scoring, 6)},
                    ),
                )
            )


def _family(name: str, kind: str, meaning: str, values: Mapping[str, float]) -> str:
    """The lines of one name; values by what stands behind it."""
    lines = [f"# HELP glance_fast_{name} {meaning}", f"# TYPE glance_fast_{name} {kind}"]
    lines += [f"glance_fast_{name}{rest} {value}" for rest, value in values.items()]
    return "\n".join(lines) + "\n"
