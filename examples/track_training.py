"""Train from Python, and hand losses on to a tracker of experiments.

python track_training.py photos/good RUN metrics.jsonl

Here the tracker is a file of JSON lines. Put the call of yours where it writes: `mlflow.log_metrics(figures,
step=event.done)`, or `writer.add_scalar` of TensorBoard for each figure.
"""

import json
import sys
from pathlib import Path

import glance_fast

good, run, log = sys.argv[1:]

with Path(log).open("w", encoding="utf-8") as tracker:

    def track(event):
        """Called for each line, each task and each step of the training."""
        if event.kind == "line":
            print(event.name)
        elif event.kind == "step":
            line = {"net": event.name, "step": event.done, "of": event.total, **event.figures}
            tracker.write(json.dumps(line) + "\n")

    # Smaller than the defaults, to be done soon; leave the settings away for a model to keep.
    config = glance_fast.Config(image_size=64, patch=32, stride=16, steps=20, finetune_steps=5, variants=16)
    model = glance_fast.fit(good, config, run, callback=track)

print(f"{run}: trained, threshold {model.calibration.threshold:.3f}")
