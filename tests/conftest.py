"""Setup for all tests."""

import signal

# A shell that starts the tests in the background has them, and the programs that they
# start, ignore SIGINT; tests of KeyboardInterrupt would wait forever.
signal.signal(signal.SIGINT, signal.default_int_handler)
