from .black_boxes import audit_answers
from .results import Audit

__all__ = ["Audit", "audit_answers"]
