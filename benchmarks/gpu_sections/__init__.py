"""The sections of `benchmarks/gpu.py`: a module for each, whose ``run(session)`` measures and writes rows."""
