from .answers import answer_table
from .black_boxes import audit_answers
from .network_audit import AuditSettings, audit
from .recipes import audit_recipe
from .results import Audit

__all__ = ["Audit", "AuditSettings", "answer_table", "audit", "audit_answers", "audit_recipe"]
