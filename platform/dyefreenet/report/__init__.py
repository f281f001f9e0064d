"""The table and the pages of a run. Reads run folders only; nothing is measured here."""

from dyefreenet.report.conventions import protocols_text, summary_object
from dyefreenet.report.page import write_report
from dyefreenet.report.quality import write_quality
from dyefreenet.report.sweep import write_sweep
from dyefreenet.report.table import table_text
from dyefreenet.report.tuned import tuned_text

__all__ = [
    "protocols_text",
    "summary_object",
    "table_text",
    "tuned_text",
    "write_quality",
    "write_report",
    "write_sweep",
]
