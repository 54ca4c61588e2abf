"""A job that is stopped ends with its own exit status, wherever the signal comes."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from univip_stream.stopping import stoppable

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored by what a shell began in the background
try:
    with stoppable():
        # As a library that is imported makes its named tuples.
        exec("os.kill(os.getpid(), signal.Signals(int(sys.argv[1])))\\ntime.sleep(30)")
except KeyboardInterrupt:
    sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_exit_status_is_the_programs_also_out_of_compiled_text(number, tmp_path):
    (tmp_path / "job.py").write_text(PROGRAM)
    paths = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    done = subprocess.run(
        [sys.executable, "-m", "job", str(int(number))], env=paths, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (75, "")


def test_what_ignores_ctrl_c_goes_on_ignoring_it():
    from univip_stream.stopping import Stopped, stoppable

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(Stopped):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is sigterm
    finally:
        signal.signal(signal.SIGINT, before)
