"""A bank whose every part is real and a thousandth of the usual size. Tests and benchmarks serve it too."""
