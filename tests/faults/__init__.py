"""Faults in real processes: what a run promises to survive, each promise counted.

pytest tests/faults                    # the short form
python -m tests.faults --full          # the table of docs/reliability.md
"""
