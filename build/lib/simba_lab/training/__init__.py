"""Train networks on cohorts and judge them."""

from simba_lab.training.evaluation import disparity, evaluate, logits, twin_effect
from simba_lab.training.fitting import FitConfig, Run, fit
from simba_lab.training.networks import SimBANet

__all__ = ["FitConfig", "Run", "SimBANet", "disparity", "evaluate", "fit", "logits", "twin_effect"]
