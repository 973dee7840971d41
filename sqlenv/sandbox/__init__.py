"""Runs SQL that may be hostile: worker processes with limits, and their parent."""

from sqlenv.sandbox.sandbox import Execution, Sandbox

__all__ = ["Execution", "Sandbox"]
