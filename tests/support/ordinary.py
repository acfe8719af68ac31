"""Be an ordinary user from here on: `python tests/support/ordinary.py UID COMMAND...`, started by root in any folder.

The interpreter and this repository may lie where only root can enter. In a mount namespace of its own every closed folder above
them is replaced by an open one that holds nothing but them.
"""

import os
import signal
import stat
import sys
from pathlib import Path

from pipeline.cli.contain import kernel

NEEDED = (sys.base_prefix, sys.prefix, str(Path(__file__).parents[2]))


def main(uid: int, command: list[str]) -> None:
    """Open the way, become the user, be the command."""
    # whatever started the tests may ignore some: the shell of a job in the background does
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    umask = os.umask(0o022)
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    trees = {path: kernel.open_tree(path) for path in dict.fromkeys(map(os.path.realpath, NEEDED))}
    for path in trees:
        for folder in reversed(Path(path).parents):
            if not folder.is_dir() or not stat.S_IMODE(folder.stat().st_mode) & 0o001:
                if not folder.is_mount():
                    kernel.mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
                break
    for path, tree in trees.items():
        if not os.path.exists(path):
            Path(path).mkdir(mode=0o755, parents=True)
            kernel.attach(tree, path)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.umask(umask)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
