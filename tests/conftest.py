"""Settings that all tests share."""

from hypothesis import settings

# Kernels compile on first use, so the first example of a property is slow; the gate must give the same answer twice.
settings.register_profile("gate", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("gate")
