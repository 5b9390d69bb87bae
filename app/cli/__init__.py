"""The command `clocktower`: starts the service, looks after it, and rehearses its peak.

Exit status everywhere: 0 when it went well, 1 when something was found wrong, 2 when it could not start, 130 when
Ctrl-C stopped it before its end. What an operator can mend is said in one sentence, never as a traceback.
"""

import sys


def main() -> None:
    """Run the command line."""
    try:
        # Imported here: the service's processes live in this package too, and need none of the commands.
        from app.cli.commands import run  # noqa: PLC0415 - see above
    except KeyboardInterrupt:
        # The imports take most of a second, in which somebody may think better of it.
        sys.stderr.write("Stopped.\n")
        sys.exit(130)
    run()
