"""A plugin for pytest that has the garbage collector at work all the time.

What is referred to weakly, or by nothing but a cycle, is gone as early as can be.
"""

import gc

gc.set_threshold(1)
