"""Find where the bias is encoded and whether it is used."""

from simba_lab.interpretation.activations import record
from simba_lab.interpretation.attribution import Attribution, attribute
from simba_lab.interpretation.probing import probe

__all__ = ["Attribution", "attribute", "probe", "record"]
