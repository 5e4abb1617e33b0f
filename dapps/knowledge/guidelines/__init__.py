"""The built-in guidelines, one YAML file each; see `docs/write-a-guideline.md` for the format."""
