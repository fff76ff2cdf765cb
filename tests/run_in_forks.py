"""Run command lines in turn, each in a fork of a process that has imported all: ``run_in_forks.py LINES OUT``.

LINES is a JSON list of ``[folder, words]``. OUT gets a JSON list of ``[status, output]``; a line that takes longer than
``LIMIT`` is ended and has the status of its signal, which is negative.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from mmdet.utils import register_all_modules

import mmdet_diffusion
import mmdet_diffusion_cli
from mmdet_diffusion.testing import REPOSITORY

LIMIT = 600  # seconds


def run(words):
    """Run a line as its program would; what it raises leaves by the interpreter's rules."""
    program, *args = words
    if program == 'mmdet-diffusion':
        sys.argv = words
        sys.exit(mmdet_diffusion_cli.main(args))
    assert program == 'python'
    sys.argv = args
    sys.path[0] = str((REPOSITORY / args[0]).parent)
    runpy.run_path(str(REPOSITORY / args[0]), run_name='__main__')


def status_of(folder, words):
    """Run a line in a child that writes to this process's standard output, and wait for it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    signal.alarm(LIMIT)
    try:
        os.chdir(folder)
        run(words)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(lines, out):
    register_all_modules(init_default_scope=False)
    results = []
    for folder, words in json.loads(Path(lines).read_text()):
        with tempfile.TemporaryFile('w+', errors='replace') as output:
            own = [os.dup(stream) for stream in (1, 2)]
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            status = status_of(folder, words)
            for stream, kept in zip((1, 2), own, strict=True):
                os.dup2(kept, stream)
                os.close(kept)
            output.seek(0)
            results.append((status, output.read()))
    Path(out).write_text(json.dumps(results))


if __name__ == '__main__':
    assert mmdet_diffusion
    main(*sys.argv[1:])
