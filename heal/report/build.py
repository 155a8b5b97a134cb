"""The report of a run, from its folder alone: figures and one self-contained page."""

from pathlib import Path

from heal.report.drawing import NARROW
from heal.report.figures import draw
from heal.report.page import render
from heal.report.results import read_results
from heal.run.files import write_atomic
from heal.run.folder import RunFolder


def build_report(folder: RunFolder) -> Path:
    """Writes `report/*.png` and `report/index.html` over the rounds that are finished; the path of the page.

    Each file is written whole, the page last.

    Raises:
        UserError: the folder is no run, no round of it is finished, or a file is not what heal writes.
    """
    results = read_results(folder)
    figures = draw(results)
    page = render(results, figures, draw(results, NARROW))
    for name, content in figures.items():
        write_atomic(folder.report / f"{name}.png", content)
    target = folder.report / "index.html"
    write_atomic(target, page)
    return target
