"""OpenMP's waiting policy, which its library reads once, when it is loaded: import this first.

Threads that wait for one another spin at first and then sleep. By default they spin for some
milliseconds, which on a machine with other work keeps a processor from the very thread that is
waited for: mnist_dct_ladder on two cores with one busy neighbour trains at under 40 images/s, and
at 103 where they spin for a thousand rounds; alone at 373 instead of 387. (OMP_WAIT_POLICY=passive
gives 118 and 296.) Whoever sets either variable overrules this.
"""

import os

SPINS = 1_000

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
