"""`StrokeDr`: the head-CT DApp, from a DICOM slice to "intracranial haemorrhage: yes, no or unknown".

Declares tensors and price, reads and frames slices, puts the answer into words. The network is
`dapps/strokedr/net.py`, its numbers are in `CARD.md`. Torch is imported in `load` and `forward` alone.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dapps import card
from dapps.api import DApp
from dapps.intake.dicom import read_slice
from dapps.strokedr import gate
from dapps.strokedr.framing import SIZE
from dapps.types import ClinicalFile, Finding, Inputs, IntakeRefused, Price, Report, Tensor

if TYPE_CHECKING:
    import torch

SUMMARY = {
    True: "Signs of intracranial haemorrhage.",
    False: "No sign of intracranial haemorrhage on what was sent.",
    None: "Intracranial haemorrhage can neither be called present nor absent.",
}
RECOMMENDATION = {
    True: "Have a radiologist read the whole examination now.",
    False: "Read the whole examination as usual: single slices rule nothing out; ischaemia is not looked for.",
    None: "Have a radiologist read the whole examination without delay.",
}


class StrokeDr(DApp):
    """Looks for intracranial haemorrhage on head-CT slices. Research use only."""

    version = "0.1.0"
    inputs = (Tensor("SLICE", "UINT8", [1, SIZE, SIZE], unit="grey, head framed, window 40/120 HU"),)
    outputs = (Tensor("HAEMORRHAGE", "FP32", [1], unit="probability"),)
    price = Price(1000, maximum_items=32)

    def load(self, device: str) -> None:
        """Reads the packaged weights onto the device."""
        from safetensors.torch import load

        from dapps.strokedr.net import HaemorrhageNet

        net = HaemorrhageNet()
        net.load_state_dict(load(files(__package__).joinpath("weights.safetensors").read_bytes()))
        self._net = net.eval().to(device)

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """SLICE [n,1,128,128] -> HAEMORRHAGE [n,1]."""
        import torch

        with torch.inference_mode():
            return {"HAEMORRHAGE": self._net(tensors["SLICE"])}

    def example(self) -> Inputs:
        """The framed slice of the sample."""
        return self.intake(self.sample())

    def sample(self) -> ClinicalFile:
        """The anonymous head-CT slice that pydicom ships for its own tests."""
        from pydicom.data import get_testdata_file

        path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
        if path is None:
            raise IntakeRefused("no_sample", "the installed pydicom comes without its test files")
        return ClinicalFile(Path(str(path)).read_bytes(), "head.dcm")

    def intake(self, file: ClinicalFile) -> Inputs:
        """A DICOM file with one axial head-CT slice -> SLICE [1,1,128,128]."""
        image, _ = gate.head(read_slice(file.data))
        return {"SLICE": image[None, None]}

    def report(self, outputs: Inputs) -> Report:
        """One finding over all slices sent: the highest probability speaks for them."""
        probabilities = np.asarray(outputs["HAEMORRHAGE"], np.float64).reshape(-1)
        if not len(probabilities) or not np.isfinite(probabilities).all():
            raise IntakeRefused("no_answer", "the model gave no usable answer for this image")
        probability = float(probabilities.max())
        present = card.cutoffs(__package__).present(probability)
        return Report(
            summary=f"{SUMMARY[present]} Probability {probability:.2f}, highest of {len(probabilities)} slices.",
            findings=(Finding("intracranial_haemorrhage", "intracranial haemorrhage", present, round(probability, 4)),),
            recommendation=RECOMMENDATION[present],
            quality={"slices": float(len(probabilities)), "highest_slice": float(probabilities.argmax())},
        )
