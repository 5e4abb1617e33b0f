"""Predicts the outcome of acute stroke from the admission record. Read `prognosis/admission.py` first."""
