"""What type checkers see of the package; mypy reads this file, too."""

from __future__ import annotations

from importlib.resources import files
from typing import assert_type

from glance_fast import Config


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("glance_fast") / "py.typed").is_file()


def test_settings_have_the_types_that_they_are_kept_in() -> None:
    config = Config(image_size=128, patch=32, stride=8, steps=None)
    assert assert_type(config.image_size, tuple[int, int]) == (128, 128)
    assert assert_type(config.steps, int) == 300
    assert assert_type(config.frame, int | tuple[int, ...]) == 8
    assert assert_type(config.patches, tuple[int, ...]) == (32,)
