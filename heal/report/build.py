"""The report of a run, from its folder alone: one self-contained page, and its figures as pictures."""

from pathlib import Path

from heal.report.canvas import png
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
    page = render(results)
    for name, canvas in draw(results).items():
        write_atomic(folder.report / f"{name}.png", png(canvas))
    target = folder.report / "index.html"
    write_atomic(target, page)
    return target
