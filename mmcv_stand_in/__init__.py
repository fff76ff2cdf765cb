"""Stand-ins, in torch, for the compiled operators of mmcv (its module ``mmcv._ext``), where these are not there.

``install()`` adds a finder to Python's import system; it imports nothing but the standard library, so that it can run
at every start of Python. What the stand-ins need is imported with ``mmcv.ops``.
"""

from .finder import ALWAYS, AUTO, NEVER, VARIABLE, install, is_active, mode, uninstall

__all__ = ['ALWAYS', 'AUTO', 'NEVER', 'VARIABLE', 'install', 'is_active', 'mode', 'uninstall']
