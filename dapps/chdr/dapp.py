"""Defines `CHDr`: recordings of one patient at one or several sites in, "murmur heard, refer" out.

Declares tensors and price and runs the network. `case.py` reads a case, `words.py` words the answer, `CARD.md` holds
the measured numbers. Torch is imported in `load` and `forward` alone.
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
from dapps.chdr import case as cases
from dapps.chdr import decision, phantom, samples, words
from dapps.chdr.windows import WINDOW_SAMPLES, windows

if TYPE_CHECKING:
    import torch


class CHDr(DApp):
    """Hears a heart murmur in phonocardiograms. Research use only."""

    title = "CHDr."
    version = "0.2.0"
    inputs = (Tensor("PCG", "FP32", [WINDOW_SAMPLES], unit="full scale, 2.5 s at 4000 Hz"),)
    outputs = (Tensor("MURMUR", "FP32", [3], unit="probability, lowest and highest of any member"),)
    price = Price(400, maximum_items=cases.MAX_ITEMS, guideline=100)
    shares = Shares(knowledge=4_000, guideline=1_000)
    guidelines = (decision.JOINT, decision.OXIMETRY)

    def load(self, device: str) -> None:
        """Reads the packaged weights onto the device."""
        from safetensors.torch import load

        from dapps.chdr.net import MurmurNet

        net = MurmurNet()
        net.load_state_dict(load(files(__package__).joinpath("weights.safetensors").read_bytes()))
        self._net = net.eval().to(device)

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """PCG [n,10000] -> MURMUR [n,3]."""
        import torch

        with torch.inference_mode():
            return {"MURMUR": self._net(tensors["PCG"])}

    def example(self) -> Inputs:
        """One window of the synthetic recording."""
        return {"PCG": windows(phantom.phonocardiogram(murmur=True))[:1]}

    def sample(self) -> ClinicalFile:
        """A synthetic recording with a murmur, as a WAV file."""
        return ClinicalFile(phantom.wav(phantom.phonocardiogram(murmur=True)), "phantom.wav")

    def samples(self) -> dict[str, Case]:
        """The cases of the demo."""
        return samples.cases()

    def prepare(self, case: Case) -> Prepared:
        """WAV files, each from one auscultation site, and a pulse-oximetry record, either or both.

        A record without recordings is answered by the guideline, without the model.
        """
        record, guideline_fields = decision.divided(case)
        prepared = Prepared(()) if guideline_fields and not case.files else cases.prepare(case.files, record)
        return replace(prepared, facts={**prepared.facts, "guideline": guideline_fields})

    def conclude(self, prepared: Prepared, outputs: Sequence[Inputs]) -> Report:
        """One finding over all sites, the record's measurements, and the guideline's recommendation on both."""
        report = words.report(prepared, outputs) if outputs else Report("", ())
        return decision.concluded(report, prepared, f"chdr {self.version}")

    def picture(self, prepared: Prepared, outputs: Sequence[Inputs], report: Report) -> bytes:
        """The phonocardiogram of each site with its envelope, and the murmur probability over time."""
        from dapps.chdr import drawing

        if not outputs:
            raise IntakeRefused("no_picture", "a record alone has no picture: ask for another view")
        return drawing.draw(prepared, outputs, report)

    def evaluate(self, data: Path, held_out: bool, progress: Progress) -> Iterator[Scored | Skipped]:
        """The network on `DIR/pascal_b`."""
        from dapps.chdr import evaluate

        yield from evaluate.murmur(self._net, data, held_out, progress)
