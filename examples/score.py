"""Score photographs from Python, and say which are anomalous.

python score.py RUN photo.png ...
"""

import sys

import glance_fast
from glance_fast.calibration import verdict

run, *photos = sys.argv[1:]
model = glance_fast.load(run)
print(f"threshold {model.calibration.threshold:.3f}")

# A few at a time, so that memory stays flat however many there are.
together = model.at_once()
for start in range(0, len(photos), together):
    chunk = photos[start : start + together]
    result = model.score(chunk)
    for photo, score, score_map in zip(chunk, result.scores, result.maps, strict=True):
        said = verdict(model.calibration, float(score))
        word = "anomalous" if said.anomalous else "normal"
        # Of good photographs, this share scores as high.
        print(f"{photo}: score {said.score:.3f}, {word}, above {said.above:.3g}, peak {score_map.max():.2f}")
