"""Outcome of acute stroke from what is known at admission. Read `dapps/strokedr/prognosis/admission.py` first."""
