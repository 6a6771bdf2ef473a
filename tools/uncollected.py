"""Imported first by the process that imports all else: as fast as can be, and as fast to end."""

import atexit
import gc
import os

gc.disable()  # imports take half as long
atexit.register(os._exit, 0)  # runs last; to clear away what was imported would take seconds
