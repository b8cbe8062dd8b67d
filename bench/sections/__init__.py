"""The sections of the benchmark. Each module has ``run(bench)``, which measures and hands rows to the report."""
