"""Hook that says which tensors of a checkpoint do not reach the model."""

from mmdet.models import SemiBaseDetector
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Size


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
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = getattr(model, 'module', model)  # a test-time augmentation model wraps the detector once more
        given = {name.removeprefix('module.'): getattr(value, 'shape', None)
                 for name, value in checkpoint.get('state_dict', checkpoint).items()}
        if isinstance(model, SemiBaseDetector) and not any(name.startswith(('student.', 'teacher.')) for name in given):
            model = model.student  # a supervised detector's weights go to both
        wanted = {name: value.shape for name, value in model.state_dict().items()}
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
