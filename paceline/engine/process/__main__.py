"""The child's entry: ``python -m paceline.engine.process FD``, where FD is the inherited end of the link."""

import signal
import sys

# Before anything is imported, which takes long: Ctrl-C at a terminal and a service manager's stop reach this process
# too, but it is for the parent to let calls end first.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_IGN)

from paceline.engine.process.orphan import die_with_parent  # noqa: E402

if __name__ == "__main__":
    # Nor may a parent that is killed meanwhile leave a process that goes on to read a model.
    die_with_parent(int(sys.argv[1]))

    from paceline.engine.process.child import main

    main(int(sys.argv[1]))
