"""Runs untrusted SQL in worker processes with limits on time, memory and size of the result."""

from sqlenv.sandbox.sandbox import Execution, Sandbox

__all__ = ["Execution", "Sandbox"]
