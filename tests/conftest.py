"""For all tests: what the process that runs them may have inherited, and its children must not."""

import signal

# A suite started in the background of a script ignores interrupts, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
