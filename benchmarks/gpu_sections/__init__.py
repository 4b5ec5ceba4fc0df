"""The sections of `benchmarks/gpu.py`: one module each, whose ``run(session)`` measures and appends rows."""
