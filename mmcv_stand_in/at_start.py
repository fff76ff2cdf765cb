"""What the path file of a wheel imports at every start of Python. Nothing here may stop Python."""

import sys

from .finder import install

try:
    install()
except Exception as error:
    print('mmcv_stand_in.pth: no stand-ins for the operators of mmcv:', error, file=sys.stderr)
