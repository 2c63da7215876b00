"""How fast is it? `python -m experiments.benchmark`; see `__main__.py`."""
