"""Writes docs/support.md and the README's list of model families, from the pass that tests/test_families.py makes."""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from heal.environment import quiet_libraries  # noqa: E402


def main() -> None:
    quiet_libraries(downloads=False)
    from tests.support import between_markers, every_family, page, short

    with tempfile.TemporaryDirectory() as folder:
        rows = every_family(Path(folder))
    (ROOT / "docs/support.md").write_text(page(rows), encoding="utf-8")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.replace(between_markers(text), short(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
