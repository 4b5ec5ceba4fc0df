"""Fault injection in real processes: each promise of docs/reliability.md, tested a number of times.

pytest tests/faults                    # the short form of every row
python -m tests.faults --full          # write the table of docs/reliability.md
"""
