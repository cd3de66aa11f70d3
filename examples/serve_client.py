"""Ask a running `glance-fast serve` for scores, with Python's standard library alone.

python serve_client.py http://localhost:8000 photo.png ...
"""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

server, *photos = sys.argv[1:]


def ask(photo):
    """The server's answer; where it is busy, it says when to try again."""
    image = Path(photo).read_bytes()
    while True:
        try:
            with urllib.request.urlopen(f"{server}/score", data=image, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 429:
                return json.load(error)
            time.sleep(float(error.headers["Retry-After"]))


for photo in photos:
    found = ask(photo)
    if "error" in found:
        print(f"{photo}: no score: {found['error']}")
        continue
    verdict = "anomalous" if found["anomalous"] else "normal"
    print(f"{photo}: score {found['score']:.3f}, {verdict}, {len(found['regions'])} regions")
    for region in found["regions"]:
        print("  rows {top} to {bottom}, columns {left} to {right}".format(**region["box"]))
