"""How a command says that it cannot go on, and how every command speaks."""

from typing import Final

from rich.console import Console

EXIT_WRONG: Final = 1
EXIT_COULD_NOT_START: Final = 2
# As shells count it: 128 and the number of SIGINT.
EXIT_STOPPED: Final = 130

# What a command was asked for goes to standard output; what it says about itself does not.
out: Final = Console(highlight=False)
err: Final = Console(stderr=True, highlight=False)


class Refusal(Exception):  # noqa: N818 - named by what it is: the command refuses
    """The command ends here. `str()` is a sentence for the terminal, or one a line."""

    def __init__(self, sentence: str, *, exit_status: int = EXIT_COULD_NOT_START) -> None:
        super().__init__(sentence)
        self.exit_status = exit_status


def say(sentence: str) -> None:
    """Tell the operator what is happening, as it is: square brackets are no markup, long lines stay whole."""
    err.print(sentence, markup=False, soft_wrap=True)
