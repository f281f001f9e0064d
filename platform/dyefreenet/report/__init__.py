"""The table and the page of a run. Reads run folders only; nothing is measured here."""

from dyefreenet.report.page import write_report
from dyefreenet.report.table import table_text

__all__ = ["table_text", "write_report"]
