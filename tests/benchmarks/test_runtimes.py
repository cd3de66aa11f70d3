"""What exported files take beside glance-fast: the page says what was kept."""

import json

from benchmarks import runtimes


def test_the_page_has_the_table_of_what_was_measured():
    kept = json.loads(runtimes.RESULTS.read_text())
    assert runtimes.table(kept) in runtimes.PAGE.read_text()
    first, *others = kept["ways"].items()
    assert first[0] == "glance-fast, fp32" and first[1]["apart"] == 0
    # A runtime that computes in float32 says the same.
    files = [found for name, found in others if not name.startswith("glance-fast")]
    assert files and all(0 < found["apart"] < 1e-4 for found in files)
