"""Defines `StrokeDr`: head CT and admission record of an acute stroke in, a coded report out.

Declares tensors and price and runs the two networks, each on the items that carry its input. `case.py` reads a case,
`words.py` words the answers, the cards hold the measured numbers. Torch is imported in `load` and `forward` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from dapps.api import (
    Case,
    ClinicalFile,
    DApp,
    Inputs,
    IntakeRefused,
    Prepared,
    Price,
    Progress,
    Report,
    Scored,
    Shares,
    Skipped,
    Tensor,
)
from dapps.strokedr import case as cases
from dapps.strokedr import decision, samples, words
from dapps.strokedr.framing import SIZE
from dapps.strokedr.prognosis.admission import FIELDS, encode

if TYPE_CHECKING:
    import torch

PROGNOSIS = "dapps.strokedr.prognosis"


class StrokeDr(DApp):
    """Acute stroke: intracranial haemorrhage on head CT, and outcome from admission variables. Research use only."""

    title = "StrokeDr."
    version = "0.2.0"
    inputs = (
        Tensor("SLICE", "UINT8", [1, SIZE, SIZE], unit="grey, head framed, window 40/120 HU", optional=True),
        Tensor("ADMISSION", "FP32", [len(FIELDS)], unit="see docs/models.md; -1 is unknown", optional=True),
    )
    outputs = (
        Tensor("HAEMORRHAGE", "FP32", [3], unit="probability, lowest and highest of any member", optional=True),
        Tensor("SALIENCY", "FP32", [SIZE // 16, SIZE // 16], unit="addition to the logit", optional=True),
        Tensor("OUTCOME", "FP32", [2, 3], unit="probability, lowest and highest of any member", optional=True),
    )
    price = Price(1000, maximum_items=cases.MAX_SLICES + 1, guideline=200)
    shares = Shares(knowledge=4_000, guideline=1_000)
    guidelines = (decision.GUIDELINE,)

    def load(self, device: str) -> None:
        """Reads the packaged weights of both networks onto the device."""
        from safetensors.torch import load

        from dapps.strokedr.net import HaemorrhageNet
        from dapps.strokedr.prognosis.net import PrognosisNet

        self.haemorrhage_net, self.prognosis_net = HaemorrhageNet(), PrognosisNet()
        for net, package in ((self.haemorrhage_net, __package__), (self.prognosis_net, PROGNOSIS)):
            net.load_state_dict(load(files(package).joinpath("weights.safetensors").read_bytes()))
            net.eval().to(device)

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """SLICE [n,1,128,128] -> HAEMORRHAGE [n,3] and SALIENCY [n,8,8]; ADMISSION [n,20] -> OUTCOME [n,2,3]."""
        import torch

        outputs = {}
        with torch.inference_mode():
            if "SLICE" in tensors:
                outputs["HAEMORRHAGE"], outputs["SALIENCY"] = self.haemorrhage_net(tensors["SLICE"])
            if "ADMISSION" in tensors:
                outputs["OUTCOME"] = self.prognosis_net(tensors["ADMISSION"])
        return outputs

    def example(self) -> Inputs:
        """The framed slice of the sample, and an ordinary admission."""
        items = self.prepare(Case((self.sample(),))).items[0]
        return items | {"ADMISSION": encode(cases.EXAMPLE)[None]}

    def sample(self) -> ClinicalFile:
        """The anonymous head-CT slice that pydicom ships for its own tests."""
        from pydicom.data import get_testdata_file

        path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
        if path is None:
            raise IntakeRefused("no_sample", "the installed pydicom comes without its test files")
        return ClinicalFile(Path(str(path)).read_bytes(), "head.dcm")

    def samples(self) -> dict[str, Case]:
        """The cases of the demo."""
        return samples.cases(self.sample())

    def prepare(self, case: Case) -> Prepared:
        """Head CT (a slice, several, a multi-frame file or a ZIP) and an admission record, either or both.

        The record may also hold the guideline's fields; if it holds those alone, no model runs.
        """
        record, guideline_fields = decision.divided(case)
        guideline_only = guideline_fields and not case.files and record is None
        prepared = Prepared(()) if guideline_only else cases.prepare(case.files, record)
        return replace(prepared, facts={**prepared.facts, "guideline": guideline_fields})

    def conclude(self, prepared: Prepared, outputs: Sequence[Inputs]) -> Report:
        """Haemorrhage over all slices, the two outcomes, and the guideline's recommendation."""
        return decision.concluded(words.report(prepared, outputs), prepared, f"strokedr {self.version}")

    def picture(self, prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
        """The most suspicious slice with its saliency, and the probability of each slice."""
        from dapps.strokedr import drawing

        if not outputs:
            raise IntakeRefused("no_picture", "a record alone has no picture: ask for another view")
        return drawing.draw(prepared, outputs, report)

    def evaluate(self, data: Path, held_out: bool, progress: Progress) -> Iterator[Scored | Skipped]:
        """Both networks on `DIR/ct_ich` and `DIR/ist`."""
        from dapps.strokedr import evaluate

        yield from evaluate.haemorrhage(self.haemorrhage_net, data, held_out, progress)
        yield from evaluate.prognosis(self.prognosis_net, data, held_out, progress)
