"""The package itself."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import trio_statskeeper


def test_the_version_is_that_of_the_installed_distribution():
    assert trio_statskeeper.__version__ == version("trio-statskeeper")


def test_an_unknown_attribute_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="no attribute 'keeper'"):
        _ = trio_statskeeper.keeper
