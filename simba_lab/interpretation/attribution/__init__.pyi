from .alignment import aligned, group_map
from .change import split_change
from .checks import compare_attributions, faithfulness, sanity_checks
from .maps import Attribution, attribute

__all__ = [
    "Attribution",
    "aligned",
    "attribute",
    "compare_attributions",
    "faithfulness",
    "group_map",
    "sanity_checks",
    "split_change",
]
