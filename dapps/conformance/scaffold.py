"""Writes the package of a new DApp: class, card, tests, README and pyproject.

The package passes its own tests and the conformance suite, and an author changes it piece by piece.
"""

from __future__ import annotations

import keyword
from importlib.util import find_spec
from pathlib import Path
from string import Template

from dapps.packages import NAME

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "Says how bright a grey picture is: a DApp for Leben Mesh"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["leben-mesh"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."leben.dapps"]
$name = "$module:$kind"

[tool.setuptools]
packages = ["$module"]

[tool.setuptools.package-data]
$module = ["CARD.yaml", "*.safetensors"]
"""

CLASS = '''\
"""$kind: says how bright a grey picture is. Change it piece by piece; `leben dapp check .` says what breaks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from dapps import ClinicalFile, DApp, Finding, IntakeRefused, Price, Report, Shares, Tensor

if TYPE_CHECKING:
    import torch

SIDE = 64
"""Pixels of a picture's side."""


class $kind(DApp):
    """Says how bright a grey picture is. Research use only."""

    inputs = (Tensor("IMAGE", "UINT8", [SIDE, SIDE], unit="grey, 0 is black"),)
    outputs = (Tensor("BRIGHT", "FP32", [1], unit="probability"),)
    price = Price(50, maximum_items=8)  # atomic units of the asset for each item: 1 000 000 are 1.00
    shares = Shares(knowledge=5_000, data=2_000, compute=2_500, operator=500)  # of 10 000

    def load(self, device: str) -> None:
        """A real one reads its weights: `safetensors.torch.load_file(Path(__file__).with_name(...), device)`."""
        self.threshold = 128.0

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pictures [n, 64, 64] in, probabilities [n, 1] out; row i of the answer depends on row i alone."""
        mean = tensors["IMAGE"].float().mean(dim=(1, 2))
        return {"BRIGHT": ((mean - self.threshold) / 16).sigmoid()[:, None]}

    def example(self) -> dict[str, np.ndarray]:
        """One item, for warm-up and documentation."""
        return {"IMAGE": np.linspace(0, 255, SIDE * SIDE).reshape(1, SIDE, SIDE).astype(np.uint8)}

    def intake(self, file: ClinicalFile) -> dict[str, np.ndarray]:
        """One picture of any format that Pillow reads; what it refuses costs the caller nothing."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(file.data)) as picture:
                grey = picture.convert("L").resize((SIDE, SIDE))
        except (OSError, ValueError, SyntaxError) as error:
            raise IntakeRefused("unreadable", "this is no picture: send a PNG or a JPEG") from error
        return {"IMAGE": np.asarray(grey, np.uint8)[None]}

    def report(self, outputs: dict[str, np.ndarray]) -> Report:
        """The answer to one picture, for a person."""
        chance = float(outputs["BRIGHT"][0, 0])
        shade = "bright" if chance >= 0.5 else "dark"
        return Report(f"The picture is {shade}.", (Finding("bright", "bright picture", chance >= 0.5, chance),))

    def sample(self) -> ClinicalFile:
        """A file of the kind that `intake` takes, without any real person's data."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(self.example()["IMAGE"][0]).save(file, "PNG")
        return ClinicalFile(file.getvalue(), "sample.png")
'''

CARD = """\
# The model card: callers read it before they pay. `leben dapp check .` names a section that is missing.
name: $kind
intended_use: research
purpose: Says how bright a grey picture is, so that there is something to change. Of no clinical use.
data:
  name: none
  licence: CC0-1.0
# A model whose licence forbids selling must be free: the check then refuses a price above 0.
non_commercial: false
limits:
  - It measures brightness and nothing else.
"""

TEST = '''\
"""$kind holds every rule of the mesh, and answers what it should."""

import numpy as np
from $module import SIDE, $kind

from dapps.conformance import check_dapp, run


def test_it_is_a_good_dapp() -> None:
    check_dapp($kind())


def test_white_is_bright_and_black_is_not() -> None:
    dapp = $kind()
    dapp.load("cpu")
    pictures = np.stack([np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 255, np.uint8)])
    black, white = run(dapp, {"IMAGE": pictures})["BRIGHT"].ravel()
    assert black < 0.01 and white > 0.99
'''

README = """\
# $kind

A DApp for Leben Mesh. Research use only.

```sh
python -m pytest              # its tests; they hold it to every rule of the mesh
leben dapp check .            # the same rules, each by name
leben dapp serve .            # call it for nothing while you write; starts anew when a file changes
leben dapp install .          # onto the mesh that runs here: from now on it is paid for
```

`leben dapp install .` again changes nothing. The next version has another `version` in `pyproject.toml`.

| file | holds |
| --- | --- |
| `$module/__init__.py` | the class: tensors, price, shares, `forward`, intake, report |
| `$module/CARD.yaml` | the model card |
| `pyproject.toml` | the entry point under which the mesh finds it |
"""

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "$module/__init__.py": CLASS,
    "$module/CARD.yaml": CARD,
    "tests/test_$module.py": TEST,
}


def make(name: str, folder: Path) -> list[Path]:
    """Writes the package of a DApp into a new folder; returns its files.

    Args:
        name: of the DApp, as in its URL; its Python module has `_` for `-`.
        folder: does not exist, or is empty.

    Raises:
        ValueError: the name cannot be used, or the folder is taken; the message says why.
    """
    module = name.replace("-", "_")
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r}: a name is lower-case letters, digits, - and _, and begins with a letter")
    if keyword.iskeyword(module) or find_spec(module) is not None:
        raise ValueError(f"{name}: Python already has something named {module}: choose another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already: choose another name or another folder")
    kind = "".join(part.capitalize() for part in module.split("_"))
    written = []
    for path, text in FILES.items():
        file = folder / Template(path).substitute(module=module)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(text).substitute(name=name, module=module, kind=kind), "utf-8")
        written.append(file)
    return written
