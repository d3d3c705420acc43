"""The command line with the fake model, so that a test can see how several processes of it end.

`python fake_command.py ARGUMENTS` is `coremat ARGUMENTS`; rank KILLED of the environment kills itself on the way.
"""

import os
import signal
import sys
from typing import Any

import coremat.cli.launch
import coremat.cli.main

LAST = 3  # batches that the killed rank answers


def install_fake() -> None:
    """In a rank alone: their parent answers nothing, and need not wait for these imports."""
    import fake_answers

    import coremat.models.load
    import coremat.runtime.support

    class Mortal(fake_answers.FakeAnswer):
        def _answer(self, *words: Any, **options: Any) -> list[fake_answers.Answer]:
            if len(self.asked) == LAST and os.environ.get("KILLED") == os.environ["RANK"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._answer(*words, **options)

    fake_answers.install(setattr, Mortal(pause=0.05))
    coremat.models.load.load = lambda *words: fake_answers.FAKE
    coremat.runtime.support.why_unsupported = lambda *words: None


if __name__ == "__main__":
    if "RANK" in os.environ:
        install_fake()
        coremat.cli.launch.work(sys.argv[1:])
    coremat.cli.launch.RANK = (__file__,)
    coremat.cli.main.main()
