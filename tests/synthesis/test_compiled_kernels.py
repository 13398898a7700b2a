"""Kernels are compiled once per machine if a folder can be written, and work if none can."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from numba.core import caching

from simba_lab.synthesis.kernels.compiling import compiled


def double(values):
    total = np.float32(0)
    for value in values:
        total += np.float32(2) * value
    return total


@pytest.fixture
def writable(monkeypatch):
    """A set of folders: nothing else can be written by Numba."""
    folders, make, temporary = set(), os.makedirs, tempfile.TemporaryFile

    def refused_outside(function, path):
        if not any(Path(path).is_relative_to(folder) for folder in folders):
            raise PermissionError(f"{path} is read-only")
        return function()

    monkeypatch.setattr(
        caching.os,
        "makedirs",
        lambda path, **options: refused_outside(lambda: make(path, **options), path),
    )
    monkeypatch.setattr(
        caching.tempfile,
        "TemporaryFile",
        lambda dir: refused_outside(lambda: temporary(dir=dir), dir),
    )
    return folders


VALUES = np.arange(4, dtype=np.float32)


def test_kernels_work_where_nothing_can_be_written(writable):
    kernel = compiled(double)
    assert kernel(VALUES) == 12
    assert not kernel.stats.cache_path


def test_the_cache_of_the_lab_is_used_where_no_other_can_be_written(writable, tmp_path):
    writable.add(tmp_path)
    kernel = compiled(double)
    assert kernel(VALUES) == 12
    assert Path(kernel.stats.cache_path).is_relative_to(tmp_path / "cache" / "kernels")
    assert sum(kernel.stats.cache_misses.values()) == 1
    again = compiled(double)
    assert again(VALUES) == 12
    assert sum(again.stats.cache_hits.values()) == 1


def test_compiled_code_is_read_from_a_folder_that_cannot_be_written(writable, tmp_path):
    writable.add(tmp_path)
    compiled(double)(VALUES)
    writable.clear()
    kernel = compiled(double)
    assert kernel(VALUES) == 12
    assert sum(kernel.stats.cache_hits.values()) == 1
    assert kernel(VALUES.astype(float)) == 12  # not in the folder: compiled, and not kept


def test_a_folder_that_becomes_read_only_is_no_error(writable, tmp_path):
    writable.add(tmp_path)
    kernel = compiled(double)
    writable.clear()
    assert kernel(VALUES) == 12
