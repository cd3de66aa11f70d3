"""What a server costs beside the model it serves: the page says what was kept."""

import json
import statistics

from benchmarks import serving


def test_the_page_has_the_table_of_what_was_measured():
    kept = json.loads(serving.RESULTS.read_text())
    assert serving.table(kept) in serving.PAGE.read_text()
    plain, served = (statistics.median(kept[f"{way}_per_second"]) for way in ("score", "served"))
    assert kept["clients"] == 8 and served >= 0.95 * plain and kept["p99_ms"] <= 3 * kept["p50_ms"]
