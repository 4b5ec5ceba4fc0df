"""Who is missing at a barrier, and who can't join."""

import subprocess
import sys

from tests.faults.runs import environment, free_port

PROGRAM = """
import sys, time
from jaxai import cli, command
from jaxai.train import processes
processes.BARRIER_SECONDS = 2
index = int(sys.argv[2])
def meet():
    with cli.joined(sys.argv[1], 2, index):
        cli.start_platform("cpu", 1)
        processes.barrier("first")
        if index == 1:
            time.sleep(8)
        processes.barrier("second")
command.guard(meet)
"""


def test_a_barrier_names_who_is_missing():
    line, address = [sys.executable, "-c", PROGRAM], f"127.0.0.1:{free_port()}"
    jobs = [
        subprocess.Popen([*line, address, str(index)], stderr=subprocess.PIPE, text=True, env=environment())
        for index in range(2)
    ]
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert all(job.returncode for job in jobs)
    assert "not all processes came to 'second, 1' within 2 s, missing: 1;" in said[0], said[0]
