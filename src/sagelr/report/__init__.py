"""results.json and audits as one page that needs no network.

Reads JSON and imports nothing else of sagelr but its errors.
"""

from sagelr.report.page import write_report

__all__ = ["write_report"]
