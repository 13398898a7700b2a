"""Find where the bias is encoded and whether it is used."""

from simba_lab.interpretation.activations import Recording, edit, record
from simba_lab.interpretation.attribution import Attribution, attribute
from simba_lab.interpretation.attribution_alignment import aligned, group_map
from simba_lab.interpretation.attribution_checks import compare_attributions, faithfulness, sanity_checks
from simba_lab.interpretation.audit import erasure_audit
from simba_lab.interpretation.change import split_change
from simba_lab.interpretation.concepts import tcav
from simba_lab.interpretation.ease import code_length, learning_curve, prominence
from simba_lab.interpretation.edits import adding, projecting_out, replacing
from simba_lab.interpretation.encoding_and_use import encoding_and_use, encoding_version
from simba_lab.interpretation.erasure import Erasure, erase, leace
from simba_lab.interpretation.geometry import angles, components, projections
from simba_lab.interpretation.interchange import interchange
from simba_lab.interpretation.kernel_ridge import kernel_coordinates
from simba_lab.interpretation.probing import probe
from simba_lab.interpretation.questions import octants
from simba_lab.interpretation.similarity import cka, cka_matrix

__all__ = [
    "Attribution",
    "Erasure",
    "Recording",
    "adding",
    "aligned",
    "angles",
    "attribute",
    "cka",
    "cka_matrix",
    "code_length",
    "compare_attributions",
    "components",
    "edit",
    "encoding_and_use",
    "encoding_version",
    "erase",
    "erasure_audit",
    "faithfulness",
    "group_map",
    "interchange",
    "kernel_coordinates",
    "leace",
    "learning_curve",
    "octants",
    "probe",
    "projecting_out",
    "projections",
    "prominence",
    "record",
    "replacing",
    "sanity_checks",
    "split_change",
    "tcav",
]
