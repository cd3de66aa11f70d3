"""A server that runs, and clients that ask it, some of them odd."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import logging
import math
import socket
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import deep
import numpy as np
import pytest
import tifffile
import torch
from clients import Client, serving
from PIL import Image
from samples import draw_deep_part, draw_part

from glance_fast.data.roi import resize_scores
from glance_fast.data.score_maps import resize_map
from glance_fast.errors import UserError
from glance_fast.evaluation.overlay import display_range, heat, scale
from glance_fast.evaluation.regions import find_regions
from glance_fast.model import NOT_FINITE
from glance_fast.run import load
from glance_fast.serving import app, server
from glance_fast.tiles import score_photograph


def png(image, kind="PNG", **how):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **how)
    return buffer.getvalue()


def parts_drawn(count, size=64):
    rng = np.random.default_rng(0)
    return [draw_part(rng, size, defect=i % 2 == 1) for i in range(count)]


def form(content, field="image", boundary="line"):
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="/etc/passwd"\r\n'
    return head.encode() + b"Content-Type: image/png\r\n\r\n" + content + f"\r\n--{boundary}--\r\n".encode()


def bomb(width=60_000, height=60_000):
    """A small PNG whose header promises a lot."""

    def chunk(kind, data):
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def broken():
    """Bodies of many kinds that are no image, each with a part of what is said."""
    whole = png(parts_drawn(1)[0])
    jpeg = png(parts_drawn(1)[0], "JPEG")
    several = io.BytesIO()
    pictures = [Image.fromarray(image) for image in parts_drawn(2)]
    pictures[0].save(several, "GIF", save_all=True, append_images=pictures[1:])
    floats = io.BytesIO()
    tifffile.imwrite(floats, np.zeros((9, 9), np.float32))
    return {
        "empty": (b"", "is empty (0 bytes)"),
        "text": (b"/etc/passwd", "is not an image of a kind that is read"),
        "cut": (whole[: len(whole) // 2], "damaged or truncated"),
        "cut jpeg": (jpeg[: len(jpeg) // 2], "damaged or truncated"),
        "noise": (whole[:60] + bytes(range(256)) * 9, "damaged or truncated"),
        "header alone": (whole[:8], "is not an image of a kind that is read"),
        "bomb": (bomb(10_000, 10_000), "too large: 10000x10000 is above the limit of"),
        "larger bomb": (bomb(), "too large: it is above the limit of"),
        "no pixels": (bomb(0, 5), "is not an image of a kind that is read"),
        "several frames": (several.getvalue(), "holds several frames or pages"),
        "floats": (floats.getvalue(), "has floating-point pixels"),
        "PDF": (b"%PDF-1.4 and so on", "is not an image of a kind that is read"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
    }


def test_a_score_is_that_of_the_model(served, model):
    images = parts_drawn(4, size=90)
    expected = model.score(images)
    for image, score in zip(images, expected.scores, strict=True):
        status, said = served.client().score(png(image), Content_Type="image/png")
        assert status == 200 and said["score"] == pytest.approx(score, rel=1e-4, abs=1e-4)
        assert said["above"] == pytest.approx(model.calibration.share_above(said["score"]), rel=1e-2)
        assert said["anomalous"] == (said["score"] > model.calibration.threshold)
        assert (said["height"], said["width"]) == (90, 90) and "map" not in said


def test_regions_and_maps_are_of_the_images_own_size(served, model):
    image = np.concatenate([parts_drawn(2, size=96)[1]] * 2, axis=1)
    client, threshold = served.client(), model.calibration.pixel_threshold
    status, said = client.score(png(image), "?map=tiff")
    assert status == 200 and (said["height"], said["width"]) == (96, 192)
    full = tifffile.imread(io.BytesIO(base64.b64decode(said["map"])))
    expected = resize_map(model.score([image]).maps[0], (96, 192))
    assert full.dtype == np.float32
    np.testing.assert_allclose(full, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert said["regions"] == [region.as_dict() for region in find_regions(full, threshold)]
    assert client.score(png(image))[1]["regions"] == said["regions"] != []
    picture = Image.open(io.BytesIO(base64.b64decode(client.score(png(image), "?map=png")[1]["map"])))
    assert picture.format == "PNG" and picture.size == (192, 96)
    low, high, _ = display_range(model.calibration)
    np.testing.assert_allclose(np.asarray(picture), heat(scale(full, low, high)), atol=4)


@pytest.fixture
def inside(model):
    """A region of interest that the model has for one test."""
    pixels = np.zeros((64, 64), bool)
    pixels[8:40, 8:40] = True
    model.inside = torch.from_numpy(pixels)
    yield pixels
    model.inside = None


def test_nothing_is_found_outside_a_region_of_interest(served, model, inside):
    image, client = parts_drawn(2, size=128)[1], served.client()
    found = model.score([image])
    status, said = client.score(png(image), "?map=tiff")
    assert status == 200 and said["score"] == pytest.approx(found.scores[0], rel=1e-4, abs=1e-4)
    full = tifffile.imread(io.BytesIO(base64.b64decode(said["map"])))
    expected = resize_scores(found.maps[0], (128, 128), inside)
    np.testing.assert_allclose(full, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert (full[:14] == full[0, 0]).all() and full[0, 0] <= 0
    for region in said["regions"]:
        assert region["box"]["top"] >= 14 and region["box"]["bottom"] <= 82


def test_a_model_without_thresholds(served, model, monkeypatch):
    plain = dataclasses.replace(model.calibration, threshold=math.inf, pixel_threshold=math.inf)
    monkeypatch.setattr(model, "calibration", plain)
    client, (image,) = served.client(), parts_drawn(1)
    for query in ("", "?map=tiff", "?map=png"):
        status, said = client.score(png(image), query)
        assert status == 200 and said["anomalous"] is None and said["regions"] == []
        assert ("map" in said) == bool(query)
    health = client.ask("GET", "/health")[2]
    assert health["threshold"] is None and health["pixel_threshold"] is None


def test_a_form_and_other_kinds_of_images(served, model):
    image, client = parts_drawn(1)[0], served.client()
    _, plain = client.score(png(image))
    for content in (png(image), png(image, "BMP"), png(image, "TIFF"), png(image, "WEBP", lossless=True)):
        for body, kind in ((content, "application/octet-stream"), (content, "image/x-what-you-like")):
            assert client.score(body, Content_Type=kind) == (200, plain)
        assert client.score(form(content), Content_Type="multipart/form-data; boundary=line") == (200, plain)
    assert client.score(png(image, "JPEG", quality=95))[0] == 200
    two = form(b"x", field="other")[: -len("--line--\r\n")] + form(png(image))
    assert client.score(two, Content_Type='multipart/form-data; boundary="line"') == (200, plain)


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (form(b"x", field="photo"), "multipart/form-data; boundary=line", "a form without a field 'image'"),
        (b"nothing of it", "multipart/form-data; boundary=line", "a form without a field 'image'"),
        (form(b"x"), "multipart/form-data", "a form without a boundary"),
        (form(b""), "multipart/form-data; boundary=line", "is empty (0 bytes)"),
        (form(b"x"), "multipart/form-data; boundary=line", "is not an image of a kind"),
        (form(b"x"), "multipart/form-data; boundary=\xff", "a form without a field"),
    ],
)
def test_forms_that_are_odd(served, body, kind, message):
    status, said = served.client().score(body, Content_Type=kind)
    assert status == 422 and message in said["error"] and "\n" not in said["error"]


@pytest.mark.parametrize("kind", broken())
def test_what_is_no_image_is_told_in_one_line(served, kind):
    body, message = broken()[kind]
    status, said = served.client().score(body)
    assert status == 422 and list(said) == ["error"]
    assert message in said["error"] and "\n" not in said["error"] and "passwd" not in said["error"]


def test_wrong_questions(served):
    client = served.client()
    assert client.ask("GET", "/score")[0] == 405 and client.ask("GET", "/none")[0] == 404
    status, said = client.score(b"x", "?map=gif")
    assert status == 422 and said == {"error": "map: Input should be 'png' or 'tiff'"}


def test_a_body_that_is_too_large(model):
    with serving(model, max_mib=1) as served:
        # Also more than the system keeps for a client that first sends all that it has.
        for size in ((1 << 20) + 1, 2 << 20, 30 << 20):
            status, said = served.client().score(bytes(size))
            assert status == 413 and said == {"error": "the body is larger than 1 MiB; reduce the image"}
        # Without its length, in pieces.
        status, said = served.client().score(iter([bytes(1 << 18)] * 6))
        assert status == 413
        # So much that it is not read to its end.
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
            client.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
            client.sendall(bytes(2 << 20) + b"x")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        assert served.client().score(png(parts_drawn(1)[0]))[0] == 200
        assert served.metrics()['glance_fast_requests_total{outcome="too_large"}'] == 5


def test_what_waits_is_scored_together(model, monkeypatch):
    sizes, gate = [], threading.Event()
    score = model.score

    def gated(images, *how):
        sizes.append(len(images))
        gate.wait(30)
        return score(images, *how)

    images = parts_drawn(7)
    expected = score(images).scores
    with serving(model) as served:
        monkeypatch.setattr(model, "score", gated)
        with ThreadPoolExecutor(7) as pool:
            answers = [pool.submit(served.client().score, png(images[0]))]
            await_until(lambda: sizes == [1])
            answers += [pool.submit(served.client().score, png(image)) for image in images[1:]]
            await_until(lambda: served.server.config.loaded and waiting(served) == 7)
            time.sleep(0.3)  # decoding takes milliseconds
            gate.set()
            scores = [answer.result()[1]["score"] for answer in answers]
        assert sizes == [1, 6]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
        found = served.metrics()
        assert found["glance_fast_batches_total"] == 3, "with the first of all, which warms the model up"
        assert found["glance_fast_batch_images_total"] == 8 and found["glance_fast_waiting_images"] == 0
        assert found["glance_fast_request_seconds_count"] == 7
        assert found['glance_fast_request_seconds_bucket{le="+Inf"}'] == 7
        assert found["glance_fast_request_seconds_sum"] > 7 * 0.3


def waiting(served):
    return served.client().ask("GET", "/health")[2]["waiting"]


def await_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_refuses_and_goes_on(model, monkeypatch):
    gate, score = threading.Event(), model.score
    image = png(parts_drawn(1)[0])
    with serving(model, queue=3, max_mib=32) as served:
        monkeypatch.setattr(model, "score", lambda *a: gate.wait(30) and score(*a))
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(served.client().score, image) for _ in range(3)]
            await_until(lambda: waiting(served) == 3)
            client = served.client()
            # Also to clients that first send all that they have, more than the system keeps for them.
            for body in (image, bytes(30 << 20), iter([bytes(1 << 20)] * 30)):
                status, headers, said = client.ask("POST", "/score", body)
                assert status == 429 and headers["Retry-After"] == "1"
                assert said == {"error": "3 images wait already; try again in 1 s"}
            gate.set()
            assert [answer.result()[0] for answer in answers] == [200, 200, 200]
        assert client.score(image)[0] == 200, "the connection is of use again"
        assert served.metrics()['glance_fast_requests_total{outcome="busy"}'] == 3


def test_many_clients_and_a_tenth_of_the_bodies_broken(served, model):
    images = parts_drawn(10)
    expected = model.score(images).scores
    bad = list(broken().values())
    before = served.metrics()
    wrong = []

    def ask(first):
        client = served.client()
        for i in range(first, 300, 8):
            if i % 10 == 9:
                body, message = bad[(i // 10) % len(bad)]
                status, said = client.score(body)
                good = status == 422 and message in said["error"]
            else:
                status, said = client.score(png(images[i % 10]))
                good = status == 200 and abs(said["score"] - expected[i % 10]) < 1e-3
            if not good:
                wrong.append((i, status, said))

    with ThreadPoolExecutor(8) as pool:
        for answer in [pool.submit(ask, first) for first in range(8)]:
            answer.result()
    assert wrong == []
    after = served.metrics()
    ended = {k: after[k] - before[k] for k in after if k.startswith("glance_fast_requests_total")}
    assert ended.pop('glance_fast_requests_total{outcome="scored"}') == 270
    assert ended.pop('glance_fast_requests_total{outcome="damaged"}') == 30
    assert set(ended.values()) == {0}


def test_clients_that_go_and_clients_that_say_nothing_sensible(served, model):
    image = png(parts_drawn(1)[0])
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    for said in (b"", b"\0\xff\r\n\r\n", b"POST /score\r\n\r\n", head, head + image[:50], head + image):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
            client.sendall(said)
    await_until(lambda: waiting(served) == 0)
    assert served.client().score(image)[0] == 200


def test_a_client_that_takes_too_long(served, monkeypatch):
    monkeypatch.setattr(app, "PATIENCE", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    await_until(lambda: waiting(served) == 0)


def test_health(served, model):
    status, _, said = served.client().ask("GET", "/health")
    assert status == 200 and said["status"] == "ok" and said["image_size"] == [64, 64]
    assert said["threshold"] == model.calibration.threshold
    assert "/score" in served.client().ask("GET", "/openapi.json")[2]["paths"]


def test_what_fails_fails_alone(served, model, monkeypatch, caplog):
    image, score = png(parts_drawn(1)[0]), model.score

    def fail(*arguments):
        raise RuntimeError("a bug, with secrets")

    monkeypatch.setattr(model, "score", fail)
    with caplog.at_level(logging.ERROR):
        status, said = served.client().score(image)
    assert (status, said) == (500, {"error": "the image could not be scored; the server's log says why"})
    assert "a bug, with secrets" in caplog.text

    def odd(*arguments):
        result = score(*arguments)
        result.maps[:, 0, 0] = np.nan
        return result

    monkeypatch.setattr(model, "score", odd)
    assert served.client().score(image) == (500, {"error": NOT_FINITE})
    monkeypatch.setattr(model, "score", score)
    assert served.client().score(image)[0] == 200


def test_a_model_of_tiles_answers_for_large_images(served, model, monkeypatch):
    large = np.concatenate(parts_drawn(2), axis=1)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, tile=48))
    status, said = served.client().score(png(large))
    _, score = score_photograph(model, large)
    assert status == 200 and (said["height"], said["width"]) == large.shape[:2]
    assert said["score"] == pytest.approx(score, rel=1e-6)


def test_what_waits_is_answered_before_the_end(model, monkeypatch):
    gate, score = threading.Event(), model.score
    image, before = png(parts_drawn(1)[0]), threading.active_count()
    with ThreadPoolExecutor(5) as pool:
        with serving(model) as served:
            monkeypatch.setattr(model, "score", lambda *a: gate.wait(30) and score(*a))
            answers = [pool.submit(served.client().score, image) for _ in range(5)]
            await_until(lambda: waiting(served) == 5)
            served.server.should_exit = True
            time.sleep(0.3)
            with pytest.raises(OSError):
                Client(served.port).score(image)
            gate.set()
        assert [answer.result()[0] for answer in answers] == [200] * 5
    await_until(lambda: threading.active_count() <= before)


def test_answers_are_sent_at_once():
    """Else the second part of an answer waits for the client to confirm the first, 40 ms."""

    async def sends_at_once():
        listener = server.listen("127.0.0.1", 0)
        found = asyncio.get_running_loop().create_future()

        def answer(reader, writer):
            found.set_result(
                writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            )
            writer.close()

        async with await asyncio.start_server(answer, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            at_once = await found
            writer.close()
        return at_once

    assert asyncio.run(sends_at_once())


def test_an_address_that_is_taken_or_odd(model):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with taken, pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: cannot be listened on: Address alr"):
        server.serve(model, port=port)
    with pytest.raises(UserError, match=r"203\.0\.113\.1:0: cannot be listened on: Cannot assign"):
        server.serve(model, host="203.0.113.1", port=0)
    with pytest.raises(UserError, match=r"no such host\.:0: cannot be listened on: "):
        server.serve(model, host="no such host.", port=0)


def test_without_fastapi_it_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"needs fastapi and uvicorn: pip install 'glance-fast\[serve\]'"):
        server.serve(model)


def test_an_engine_that_the_net_has_not(model):
    with pytest.raises(UserError, match="'dense' is for masked nets"):
        server.serve(model, port=0, engine="dense")


def test_metrics_are_prometheus_text(served):
    _, headers, said = served.client().ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = said.decode().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == 6
    for line in lines:
        if not line.startswith("#"):
            name = line.split("{")[0].split()[0]
            assert any(name == known or name.startswith(f"{known}_") for known in names), line
    counts = [float(line.split()[-1]) for line in lines if "_bucket{" in line]
    assert counts == sorted(counts)
    assert said.endswith(b"\n")


def test_more_than_8_bits_are_kept_where_the_model_knows_them(deep_run):
    model = load(deep_run, "cpu")
    image = draw_deep_part(np.random.default_rng(3), defect=True)
    colours = deep.png(np.repeat(image[..., None], 3, axis=2))
    with serving(model) as running:
        client = running.client()
        status, said = client.score(png(image))
        assert status == 200 and "remarks" not in said
        assert said["score"] == pytest.approx(model.score([image]).scores[0], rel=1e-4, abs=1e-4)
        assert client.score(colours) == (200, said)
        status, said = client.score(png((image // 16).astype(np.uint8)))
        assert status == 200
        assert said["remarks"] == [
            "1 image has 8 bits, and those in training had more: 255 was taken for their white"
        ]


def test_more_than_8_bits_are_refused_where_the_model_does_not(served):
    image = draw_deep_part(np.random.default_rng(3))
    status, said = served.client().score(png(image))
    assert status == 422 and said["error"].startswith("has more than 8 bits, and the photographs that")
