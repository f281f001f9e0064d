"""The table and the pages of a run. Reads run folders only; nothing is measured here."""

from dyefreenet.report.page import write_report
from dyefreenet.report.quality import write_quality
from dyefreenet.report.table import table_text

__all__ = ["table_text", "write_quality", "write_report"]
