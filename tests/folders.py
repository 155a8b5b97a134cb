"""What lies in a folder."""

from pathlib import Path


def files_below(folder: Path) -> set[str]:
    """The files below it, by their path from it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
