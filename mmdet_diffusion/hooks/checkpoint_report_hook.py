"""Hook that says which tensors of a checkpoint do not reach the model."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Size

from .whole_state import whole_state

STUDENT_AND_TEACHER = ('student.', 'teacher.')  # of mmdet's semi-supervised detectors


@HOOKS.register_module()
class CheckpointReportHook(Hook):
    """Logs what of ``load_from`` does not fit the model; mmengine prints it, so that no log file has it.

    With other classes than the checkpoint's these are the class layers. A checkpoint of which nothing fits raises a
    ValueError: training would start from nothing.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model before it is loaded.

        Args:
            runner (Runner): with the model.
            checkpoint (dict): a state dict, or a dict with one under ``state_dict``.

        Raises:
            ValueError: if no tensor of the checkpoint fits.
        """
        given = {name.removeprefix('module.'): getattr(value, 'shape', None)
                 for name, value in checkpoint.get('state_dict', checkpoint).items()}
        # A test-time augmentation model wraps the detector once more.
        wanted = {name.removeprefix('module.'): value.shape for name, value in whole_state(runner.model).items()}
        if not any(name.startswith(STUDENT_AND_TEACHER) for name in given):  # weights of one detector go to both
            wanted = {name.removeprefix(STUDENT_AND_TEACHER[0]): shape for name, shape in wanted.items()
                      if not name.startswith(STUDENT_AND_TEACHER[1])}
        if not any(name in wanted and wanted[name] == shape for name, shape in given.items()):
            raise ValueError('no tensor of the checkpoint fits the model; it has '
                             f'{_shorten(list(given))}, the model {_shorten(list(wanted))}. Convert checkpoints of the '
                             "authors' code with tools/model_converters/diffusiondet_to_mmdet.py")
        for finding, names in differences(given, wanted).items():
            if names:
                runner.logger.warning(f'{len(names)} {finding}: {", ".join(names)}')


def differences(given: dict[str, Size | None], wanted: dict[str, Size]) -> dict[str, list[str]]:
    """Names of tensors that are not loaded, by what is wrong with them.

    Args:
        given (dict[str, Size | None]): shapes in the checkpoint.
        wanted (dict[str, Size]): shapes in the model.

    Returns:
        dict[str, list[str]]: names by finding; the counters of batch norm are nobody's loss.
    """
    return {
        'tensors of the checkpoint have another shape than in the model and are left out':
            [name for name in given if name in wanted and given[name] != wanted[name]],
        'tensors of the checkpoint have no place in the model': [name for name in given if name not in wanted],
        'tensors of the model are not in the checkpoint':
            [name for name in wanted if name not in given and not name.endswith('num_batches_tracked')],
    }


def _shorten(names: list[str], limit: int = 3) -> str:
    return ', '.join(names[:limit]) + (' ...' if len(names) > limit else '')
