"""Counts what Python does on the way of a claim: calls, of Python's own functions and of C's, and bytecodes.

CPython tells of both itself (`sys.setprofile`, `sys.settrace`), in the thread that asks and in no other. The loop
is uvloop, as it is in production: it is no Python, so between two steps of the gate nothing is counted. What is
counted is every step that the loop takes meanwhile, whichever task or callback it belongs to, except the frames of this
package, which stand for the phone. The timers of the hot path are seconds away and are called off before; only that
of the confirmations comes, once for each tick with winners, and is part of the work.
"""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

_OURS: Final = str(Path(__file__).parent)

TraceFunction = Callable[[FrameType, str, Any], Any]


class PythonWork:
    """Counts calls and bytecodes of the thread that it is used in: from nothing, and until the end of a block.

    A debugger, or coverage, sees nothing of the block.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.bytecodes = 0
        # Who watched before.
        self._trace: Any = None
        self._profile: Any = None
        self._collects = True

    # No generator, whose frames would be contextlib's and counted.
    def __enter__(self) -> None:
        self.calls = self.bytecodes = 0
        self._trace, self._profile = sys.gettrace(), sys.getprofile()
        # A collection would call the finalizers of whatever happens to be garbage.
        self._collects = gc.isenabled()
        gc.disable()
        sys.settrace(self._on_frame)
        sys.setprofile(self._on_call)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        if self._collects:
            gc.enable()

    def _on_call(self, frame: FrameType, event: str, _: object) -> None:
        # For a function of Python's the frame is its own, for one of C's that of the caller.
        if event in {"call", "c_call"} and not frame.f_code.co_filename.startswith(_OURS):
            self.calls += 1

    def _on_frame(self, frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        if frame.f_code.co_filename.startswith(_OURS):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._on_bytecode

    def _on_bytecode(self, _frame: FrameType, event: str, _argument: object) -> TraceFunction:
        if event == "opcode":
            self.bytecodes += 1
        return self._on_bytecode
