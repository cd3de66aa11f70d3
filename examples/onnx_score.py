"""Score an image by a file of glance-fast export, with NumPy, ONNX Runtime and Pillow alone.

python onnx_score.py model.onnx photo.png map.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo, picture = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["glance_fast"])

# Upright and in colour, of any size: the file resizes it as training did.
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
maps, scores, anomalous = session.run(None, {"images": np.array(image)[None]})

verdict = "anomalous" if anomalous[0] else "normal"
print(f"{photo}: score {scores[0]:.3f}, {verdict} (threshold {about['threshold']:.3f})")

# Black at the map's lowest value, white at its highest, or grey where no pixel counts as anomalous.
low, high = maps[0].min(), max(maps[0].max(), about["pixel_threshold"])
shown = (maps[0] - low) / max(high - low, 1e-6)
Image.fromarray((255 * shown).astype(np.uint8)).resize(image.size).save(picture)
