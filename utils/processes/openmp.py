"""OpenMP's waiting policy, which the library reads once, when it is loaded: import this first.

Threads that wait for one another first spin, then sleep. By default they spin for milliseconds,
which on a busy machine takes a processor from the very thread that they wait for: on two cores
beside one busy process mnist_dct_ladder trains at under 40 images/s; with a limit of a thousand
rounds at 103, and on an idle machine at 373 instead of 387. (OMP_WAIT_POLICY=passive gives 118 and
296.) Either variable, set by the user, takes precedence.
"""

import os

SPINS = 1_000

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
