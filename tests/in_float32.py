"""Runs a script, the first argument, on a CPU taken to have no bfloat16: sums then differ by float32's rounding alone."""

import runpy
import sys

import evcap.runtime

evcap.runtime.computes_bfloat16 = lambda device: False
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
