"""Holds the notice that every answer, report and explanation carries."""

RESEARCH_USE = "Research use only. Not a medical device; not for diagnosis or treatment."
