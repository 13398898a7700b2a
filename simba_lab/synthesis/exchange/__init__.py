"""Cohorts out of the lab and images into it: BIDS, tables of files, effects put into somebody's own scans."""

from simba_lab.synthesis.exchange.adapters import CohortDataset
from simba_lab.synthesis.exchange.bids import export_bids
from simba_lab.synthesis.exchange.imports import read_bids, read_simba, read_table
from simba_lab.synthesis.exchange.injection import Injected, inject

__all__ = ["CohortDataset", "Injected", "export_bids", "inject", "read_bids", "read_simba", "read_table"]
