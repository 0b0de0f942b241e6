"""Comparison with a recording of the public DynRefer release.

A recording holds meta.json (sizes, eps, constants, texts, results), tensors.safetensors (what went in and came out of every
part) and state.safetensors (the weights, under the release's names).
"""
