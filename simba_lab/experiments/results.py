"""Results: tables stored with a manifest, and their columns by layer."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import atomic_write, new_folder, read_json, write_json
from simba_lab.core.tables import table_text


def read_results(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a stored table and its manifest, after checking that they belong together.

    Parameters
    ----------
    folder : path
        Written by `Sweep.save` or `Comparison.save`.

    Returns
    -------
    table : pandas.DataFrame
        One row per cell.
    manifest : dict
        What the table follows from: the experiment, versions of code, the processor.

    Raises
    ------
    SimbaError
        If the folder holds no results, or if the table was changed since it was written.

    Examples
    --------
    >>> import simba_lab as sb
    >>> table, manifest = sb.experiments.read_results("data/results/samples_per_site")
    >>> len(table) == manifest["cells"]
    True
    """
    folder = Path(folder)
    try:
        content = (folder / "cells.csv").read_bytes()
        manifest = read_json(folder / "manifest.json", "results")
        expected = manifest["cells_sha256"]
    except (OSError, KeyError, TypeError, SimbaError) as error:
        allowed = "a folder written by Sweep.save or Comparison.save"
        raise SimbaError("results", str(folder), allowed, f"Cannot read it: {error}.") from error
    if hashlib.sha256(content).hexdigest() != expected:
        remedy = "Run the experiment again, or restore the file."
        raise SimbaError.problem(f"{folder / 'cells.csv'} was changed since it was saved.", remedy)
    return pd.read_csv(folder / "cells.csv", keep_default_na=False, na_values=[""]), manifest


def save_results(
    table: pd.DataFrame, folder: str | Path, provenance: Mapping[str, Any], *, seconds: float
) -> None:
    """Write ``cells.csv`` and ``manifest.json`` to a new folder, both or nothing.

    Parameters
    ----------
    table : pandas.DataFrame
    folder : path
        It must not exist; folders above it are made.
    provenance : mapping
        What the table follows from, as plain values.
    seconds : float
        How long it took.
    """
    text = table_text(table, index=False, float_format="%.6g")
    manifest = {
        "cells": len(table),
        "cells_sha256": hashlib.sha256(text.encode()).hexdigest(),
        **provenance,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        # Of two kinds of processor the same training gives two networks.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "minutes": round(seconds / 60, 1),
    }
    with new_folder(folder, parents=True) as unfinished:
        atomic_write(unfinished / "cells.csv", text)
        write_json(unfinished / "manifest.json", manifest)


def layers_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that a sweep with ``inside`` adds, one row per cell, bias and layer.

    Parameters
    ----------
    table : pandas.DataFrame
        From `Sweep.run` or `read_results`.

    Returns
    -------
    pandas.DataFrame
        ``bias``, ``layer``, the axes and ``seed``, then the columns of `encoding_and_use`.

    Raises
    ------
    SimbaError
        If the table comes from a sweep without ``inside``.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> row = {"prevalence.bias": 0.9, "seed": 0, "bias.block1.above_floor": 0.1}
    >>> list(sb.experiments.layers_of(pd.DataFrame([row])))
    ['bias', 'layer', 'prevalence.bias', 'seed', 'above_floor']
    """
    names = [str(name) for name in table]
    prefixes = [name.removesuffix("above_floor") for name in names if name.endswith(".above_floor")]
    if not prefixes:
        remedy = "Run the sweep with inside=True."
        raise SimbaError.problem("The table has no columns of layers.", remedy)
    axes = names[: names.index("seed") + 1]
    tables = []
    for prefix in prefixes:
        measures = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        bias, layer = prefix.removesuffix(".").rsplit(".", 1)
        layer_table = table[[*axes, *measures]].rename(columns=measures)
        layer_table.insert(0, "bias", bias)
        layer_table.insert(1, "layer", layer)
        tables.append(layer_table)
    return pd.concat(tables, ignore_index=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
