"""The report: one self-contained HTML page made from run and evaluation directories alone.

`sources` reads the directories, `methods` groups runs by configuration, `estimates` and `tables` state the figures
with their intervals, `figures` prepares what is drawn, `archive` packs the episodes, and `html` puts the page
together from the templates, styles and scripts beside this file.
"""

from selfcorrect.report.html import write_report

__all__ = ["write_report"]
