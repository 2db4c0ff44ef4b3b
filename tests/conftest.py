"""What all tests need."""

import signal

# A shell that starts the tests in the background has them, and the programs that they
# start, ignore SIGINT; tests of KeyboardInterrupt would wait for it for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
