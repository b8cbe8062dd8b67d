"""The benchmark: `python -m bench` measures Cermet, beside other frameworks where they are installed."""
