"""The report: one well-formed, self-contained file that says what the numbers say."""

from __future__ import annotations

import base64
import io
import re
import sys
import tomllib
import warnings
from fnmatch import fnmatch
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urljoin

import matplotlib
import numpy as np
import pytest
from PIL import Image

from glance_fast.config import Config
from glance_fast.errors import UserError
from glance_fast.evaluation.plots import Curves, plot_curves, plot_scores
from glance_fast.evaluation.report import Example, Group, IndexRow, write_index, write_report

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
NASTY = "<b>\"Löcher\" & 'Öl' {{ 6 * 7 }} 穴"


class Page(HTMLParser):
    """Checks that tags nest; keeps text, tags and attributes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.tags, self.attributes = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def self_contained(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert "http" not in text.lower() and "//" not in re.sub(r"base64,[^\"]*", "", text)
    assert not re.search(r"url\(|@import", text)
    sources = [value for name, value in page.attributes if name in ("src", "srcset")]
    for source in sources:
        kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", source).groups()
        image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        image.load()
        assert image.format == kind.upper()
    return page, sources


@pytest.fixture
def quick(monkeypatch):
    """Tests of the page's text do without real figures, which take most of the time."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    for name in ("plot_curves", "plot_scores"):
        monkeypatch.setattr(f"glance_fast.evaluation.report.{name}", lambda *_: buffer.getvalue())


def metrics(**changes):
    numbers = {"pro": 0.91234, "pixel_auroc": 0.98765, "image_auroc": 0.5}
    return {
        **numbers,
        "images": 5,
        "good_images": 2,
        "defective_images": 3,
        "threshold": {"value": 4.0, "false_positives": 1, "missed": 2},
        "defects": {NASTY: {**numbers, "image_auroc": None, "images": 3, "missed": 2}},
        "notes": [],
        "engine": "grouped",
        "precision": "fp32",
        "seconds": 1.25,
    } | changes


def example(**changes):
    mask = np.zeros((30, 50), bool)
    mask[5:9, 5:9] = True
    values = {
        "name": f"{NASTY}/ä 1.png",
        "score": 4.5678,
        "anomalous": True,
        "defective": True,
        "why": "clearest",
        "image": np.full((30, 50, 3), 90, np.uint8),
        "mask": mask,
        "map": np.linspace(0, 9, 64 * 64, dtype=np.float32).reshape(64, 64),
    }
    return Example(**(values | changes))


NO_CURVES = Curves()


def report(tmp_path, groups=(), title="part", curves=NO_CURVES, display=(0.0, 8.0, 4.0), **changes):
    path = tmp_path / "sub" / "report.html"
    scores, defective = np.array([1, 2, 5, 3, 9], np.float32), np.array([0, 0, 1, 1, 1], bool)
    write_report(path, title, metrics(**changes), scores, defective, curves, groups, display, Config())
    return path.read_text(encoding="utf-8")


def test_the_report_is_well_formed_and_needs_nothing_else(tmp_path):
    line = np.linspace(0, 1, 20)
    curves = Curves((line, line**0.2), (line, line**0.3))
    page, sources = self_contained(report(tmp_path, [Group("Defect: x", [example()])], curves=curves))
    assert len(sources) == 4 + 4  # two figures in two themes, four tiles
    assert page.attributes.count(("media", "(prefers-color-scheme: dark)")) == 2
    assert ("name", "viewport") in page.attributes


def test_numbers_have_three_digits_and_missing_ones_a_dash(quick, tmp_path):
    page, _ = self_contained(report(tmp_path))
    for text in ("0.912", "0.988", "0.500", "–", "0.250 s an image", "threshold 4.00"):
        assert text in page.text
    assert "0.9123" not in page.text and "None" not in page.text and "nan" not in page.text


def test_names_are_escaped_everywhere(quick, tmp_path):
    group = Group(f"Defect: {NASTY}", [example()], remark=f"more of {NASTY}")
    text = report(tmp_path, [group], title=NASTY, notes=[f"note {NASTY}"])
    page, _ = self_contained(text)
    assert "b" not in page.tags and "<b>" not in text and "42" not in page.text
    assert page.text.count(NASTY) >= 6  # title twice, note, table, heading, remark, caption
    assert ("alt", f"Image: {NASTY}/ä 1.png") in page.attributes


def test_templates_and_style_come_with_the_package():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    declared = settings["tool"]["setuptools"]["package-data"]["glance_fast.evaluation"]
    shipped = [f"templates/{file.name}" for file in (files("glance_fast.evaluation") / "templates").iterdir()]
    assert {"templates/report.html.j2", "templates/report.css"} <= set(shipped)
    assert [name for name in shipped if not any(fnmatch(name, pattern) for pattern in declared)] == []


def test_the_style_is_in_the_file_and_has_a_dark_and_a_narrow_form(quick, tmp_path):
    style = re.search("<style>(.*)</style>", report(tmp_path), re.DOTALL).group(1)
    assert (
        style.strip()
        == (files("glance_fast.evaluation") / "templates" / "report.css").read_text("utf-8").strip()
    )
    assert "@media (prefers-color-scheme: dark)" in style and "@media (max-width: 640px)" in style


@pytest.mark.parametrize(
    ("defective", "anomalous", "verdict"),
    [
        (True, True, "found"),
        (True, False, "missed"),
        (False, True, "false alarm"),
        (False, False, "called good"),
        (True, None, "no verdict"),
    ],
)
def test_verdicts(quick, tmp_path, defective, anomalous, verdict):
    shown = example(defective=defective, anomalous=anomalous, mask=None if not defective else example().mask)
    page, sources = self_contained(report(tmp_path, [Group("g", [shown])]))
    assert verdict in page.texts and "score 4.57" in page.texts
    assert ("Truth" in page.texts) == defective
    assert len(sources) == 4 + (4 if defective else 3)


def test_intervals_stand_under_their_metrics(quick, tmp_path):
    within = {"pro": [0.8762, 0.93333], "pixel_auroc": None}
    page, _ = self_contained(report(tmp_path, bootstrap=1000, intervals=within))
    assert "0.876 to 0.933" in page.text
    assert page.text.count(" to 0.") == 1 and "95 % intervals from 1000 resamples of them" in page.text
    page, _ = self_contained(report(tmp_path))
    assert "interval" not in page.text


def test_maps_of_another_method_have_no_settings(quick, tmp_path):
    path, none = tmp_path / "report.html", np.zeros(0)
    found = {
        k: v for k, v in metrics(maps="some/maps").items() if k not in ("engine", "precision", "seconds")
    }
    found["threshold"] = {"value": None, "false_positives": None, "missed": None}
    write_report(path, "part", found, none, none, NO_CURVES, [], (0.0, 1.0, None), None)
    page, _ = self_contained(path.read_text(encoding="utf-8"))
    assert "5 test images · maps of some/maps" in page.texts
    assert "Settings of the model" not in page.texts and "engine" not in page.text


def test_pictures_keep_the_shape_of_the_photograph(quick, tmp_path):
    page, _ = self_contained(report(tmp_path, [Group("g", [example()])]))
    assert [value for name, value in page.attributes if name == "style"].count("aspect-ratio:50/30") == 4


def test_without_a_threshold_nothing_is_said_about_misses(quick, tmp_path):
    none = {"value": None, "false_positives": None, "missed": None}
    page, _ = self_contained(report(tmp_path, threshold=none, display=(0.0, 1.0, None)))
    assert "False alarms" not in page.texts and "marked by the model" not in page.text


def test_all_settings_are_listed(quick, tmp_path):
    page, _ = self_contained(report(tmp_path))
    for name in Config.__dataclass_fields__:
        assert name in page.texts
    assert "8, 16" in page.texts  # the strides


def test_equal_reports_are_equal_bytes(tmp_path):
    first = report(tmp_path, [Group("g", [example()])])
    assert report(tmp_path, [Group("g", [example()])]) == first


def test_figures_do_not_touch_pyplot(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_curves(Curves())
    plot_scores(np.array([1.0], np.float32), np.array([False]), None)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([3, 3, 3, 3], None),
        ([3, 3, 3, 3], 3.0),
        ([1, 2, 40000, 3e6], 5.0),
        ([-1e-4, 2e-4, -5e3, 5e3], 0.0),
        ([0, 0, 1, 2], 1e30),
        ([-7, -6, 5, 9], -5.5),
    ],
)
@pytest.mark.parametrize("defective", [[0, 0, 1, 1], [1, 1, 1, 1]])
def test_histograms_of_odd_scores(scores, threshold, defective):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = plot_scores(np.array(scores, np.float32), np.array(defective, bool), threshold)
    assert Image.open(io.BytesIO(png)).size == (896, 592)


def test_the_index_links_to_the_reports(tmp_path):
    rows = [
        IndexRow(NASTY, tmp_path / "a b" / f"{NASTY.replace('/', '')}#?%.html", metrics()),
        IndexRow("x:y", tmp_path / "x:y.html", metrics(pro=0.5)),
    ]
    path = tmp_path / "index.html"
    write_index(path, rows)
    text = path.read_text(encoding="utf-8")
    assert "http" not in text
    page = Page(text)
    links = [value for name, value in page.attributes if name == "href"]
    base = path.as_uri()
    reached = [unquote(urljoin(base, link)) for link in links]
    assert reached == [f"file://{row.report}" for row in rows]
    assert NASTY in page.texts and "b" not in page.tags
    assert "0.706" in page.texts  # the mean of 0.91234 and 0.5


def test_a_mean_over_categories_needs_all_of_them(tmp_path):
    rows = [
        IndexRow("a", tmp_path / "a.html", metrics()),
        IndexRow("b", tmp_path / "b.html", metrics(pro=None)),
    ]
    write_index(tmp_path / "index.html", rows)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    mean = re.search(r'<tr><th scope="row">Mean</th>.*?</tr>', text).group()
    assert re.findall(r"<td>(.*?)</td>", mean) == ["", "", "", "–", "0.988", "0.500"]


def test_an_index_of_one_has_no_mean(tmp_path):
    write_index(tmp_path / "index.html", [IndexRow("a", tmp_path / "a.html", metrics())])
    assert "Mean" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        report(tmp_path)
