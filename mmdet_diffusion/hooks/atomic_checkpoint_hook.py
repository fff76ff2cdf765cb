"""Hook that saves checkpoints so that a whole one is there at any moment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from .resume_check import drop_code, refuse_partial_state

BACKEND = 'atomic_local'
PART = '.part'  # ends the name of a file that is being written


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that under its name there is the old content or all of the new, whatever happens meanwhile.

    Args:
        path (Path): of the file; its folder is made.
        content (bytes): to write.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    try:
        with open(part, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else the name may reach the disk before the content, and power fail between
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, f'{path} cannot be written ({error.strerror}); what was saved before is whole: make '
                      'room, or mend the disk, and go on with --resume') from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # network file systems may not know it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@register_backend(BACKEND, force=True)
class AtomicLocalBackend(LocalBackend):
    """Files of this machine, each written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, see :func:`replace_file`.

        Args:
            obj (bytes): content.
            filepath (str | Path): its path.

        Raises:
            OSError: if it cannot be written; what was there stays.
        """
        replace_file(Path(filepath), obj)


class _RemovalsLater(LocalBackend):
    """Collects what is to be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = []

    def remove(self, filepath: str) -> None:
        self.paths.append(filepath)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, after which ``--resume`` finds a whole checkpoint whenever the process ended.

    mmengine removes what is too old before it writes the new checkpoint (with ``max_keep_ckpts=1`` the only one),
    writes under the final name, and empties ``last_checkpoint`` before it names the new one there. Here a file is
    written beside its place and moved there, ``last_checkpoint`` likewise and after it, and what is too old goes last.
    That takes room for one checkpoint more. Checkpoints that go elsewhere, by ``backend_args`` or a ``://`` in
    ``out_dir``, are written as that back end does it.

    What a checkpoint lacks that is resumed from is said, and no code in one is run (see :mod:`.resume_check`).

    Arguments are those of ``CheckpointHook``.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Look at what was read before it is used.

        Args:
            runner (Runner): with the model.
            checkpoint (dict): as it was read.

        Raises:
            ValueError: if the training is to be resumed and something is missing.
        """
        drop_code(checkpoint)
        if runner._resume:
            refuse_partial_state(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        """Set up the folder, and remove what a process that was ended left half-written."""
        super().before_train(runner)
        if self._is_local():
            self.backend_args = dict(backend=BACKEND)
            if is_main_process():
                for part in Path(self.out_dir).glob('*.pth' + PART):
                    part.unlink(missing_ok=True)

    def _is_local(self) -> bool:
        return self.file_client_args is None and self.backend_args is None and '://' not in str(self.out_dir)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = self._count_in(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
                               save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
                               backend_args=self.backend_args, **self.args)
        if is_main_process():
            replace_file(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt.encode())
            for old in outdated:
                self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _count_in(self, runner: Runner, step: int) -> list[int]:
        """Note a checkpoint among those that are kept; gives those that go for it."""
        if self.max_keep_ckpts <= 0:
            return []
        outdated = []
        if step not in self.keep_ckpt_ids:  # the best one's score is saved into a checkpoint that is there already
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = [self.keep_ckpt_ids.popleft()]
            self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return outdated

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's and FSDP's sharded ones
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removals_after():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removals_after(self) -> Iterator[None]:
        """Within, mmengine's own removals wait: until the best checkpoint that takes the place is there."""
        if self.backend_args != dict(backend=BACKEND):
            yield
            return
        backend, self.file_backend = self.file_backend, _RemovalsLater()
        try:
            yield
            paths = self.file_backend.paths
        finally:
            self.file_backend = backend
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in paths:
            if path not in best:
                self._remove(path)
