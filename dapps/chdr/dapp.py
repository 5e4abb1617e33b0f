"""`CHDr`: the murmur DApp, from a WAV file to "murmur heard, refer".

Declares tensors and price, reads and cuts recordings, puts the answer into words. The network is `dapps/chdr/net.py`,
its numbers are in `CARD.md`. Torch is imported in `load` and `forward` alone.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from dapps import card
from dapps.api import DApp
from dapps.chdr import phantom
from dapps.chdr.windows import MAXIMUM, WINDOW_SAMPLES, windows
from dapps.intake.wav import read_wav
from dapps.types import ClinicalFile, Finding, Inputs, IntakeRefused, Price, Report, Tensor

if TYPE_CHECKING:
    import torch

SUMMARY = {
    True: "A heart murmur is heard.",
    False: "No heart murmur is heard.",
    None: "It cannot be told whether there is a heart murmur.",
}
RECOMMENDATION = {
    True: "Refer for echocardiography: a murmur is a sign, not a diagnosis; most murmurs of childhood are innocent.",
    False: "No referral because of this recording. A normal recording does not rule out heart disease.",
    None: "Repeat the recording in a quiet room, at another site; if it stays unclear, refer for echocardiography.",
}


class CHDr(DApp):
    """Hears a heart murmur in a phonocardiogram. Research use only."""

    version = "0.1.0"
    inputs = (Tensor("PCG", "FP32", [WINDOW_SAMPLES], unit="full scale, 2.5 s at 4000 Hz"),)
    outputs = (Tensor("MURMUR", "FP32", [1], unit="probability"),)
    price = Price(400, maximum_items=MAXIMUM)

    def load(self, device: str) -> None:
        """Reads the packaged weights onto the device."""
        from safetensors.torch import load

        from dapps.chdr.net import MurmurNet

        net = MurmurNet()
        net.load_state_dict(load(files(__package__).joinpath("weights.safetensors").read_bytes()))
        self._net = net.eval().to(device)

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """PCG [n,10000] -> MURMUR [n,1]."""
        import torch

        with torch.inference_mode():
            return {"MURMUR": self._net(tensors["PCG"])}

    def example(self) -> Inputs:
        """One window of the synthetic recording."""
        return {"PCG": windows(phantom.phonocardiogram(murmur=True))[:1]}

    def sample(self) -> ClinicalFile:
        """A synthetic recording with a murmur, as a WAV file."""
        return ClinicalFile(phantom.wav(phantom.phonocardiogram(murmur=True)), "phantom.wav")

    def intake(self, file: ClinicalFile) -> Inputs:
        """A WAV file -> at most eight windows, PCG [n,10000]."""
        return {"PCG": windows(read_wav(file.data))}

    def report(self, outputs: Inputs) -> Report:
        """One finding for the recording: the mean over its windows on the logit scale, as the cut-offs were chosen."""
        probabilities = np.asarray(outputs["MURMUR"], np.float64).reshape(-1)
        if not len(probabilities) or not np.isfinite(probabilities).all():
            raise IntakeRefused("no_answer", "the model gave no usable answer for this recording")
        probability = _mean(probabilities)
        present = card.cutoffs(__package__).present(probability)
        return Report(
            summary=f"{SUMMARY[present]} Probability {probability:.2f} over {len(probabilities)} windows.",
            findings=(Finding("murmur", "heart murmur", present, round(probability, 4)),),
            recommendation=RECOMMENDATION[present],
            quality={
                "windows": float(len(probabilities)),
                "lowest_window_probability": float(probabilities.min()),
                "highest_window_probability": float(probabilities.max()),
            },
        )


def _mean(probabilities: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    inside = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return float(1 / (1 + np.exp(-np.mean(np.log(inside / (1 - inside))))))
