"""The report: one self-contained HTML page made from run and evaluation directories alone.

`sources` reads the directories, `methods` groups runs by configuration, `statistics` and `tables` compute the metrics
with their intervals, `figures` prepares the figures' data, `episode_archive` packs the episodes, and `html` assembles
the page from the templates, styles and scripts in this package.
"""

from selfcorrect.report.html import write_report

__all__ = ["write_report"]
