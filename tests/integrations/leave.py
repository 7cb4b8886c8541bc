"""Runs a script with its arguments, as Python would, and leaves at once when it is done.

A thread of gloo may still be dropping the tensors of the last collective, and one that asks for the
interpreter while that is being taken down aborts the process: now and then, on a busy machine.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
